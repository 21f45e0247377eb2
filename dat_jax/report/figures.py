"""The report's figures as SVG text, for inlining into a page: worst-case bars, trade-off, training curves, likelihood of the samples."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dat_jax.methods import METHODS
from dat_jax.report.results import Results
from dat_jax.report.sweep import Point, at
from dat_jax.report.sweep import curves as curves_of
from dat_jax.report.wording import WORST, WORST_TEXT, measure_title, title

INK, FAINT, RULE = "#22262b", "#6b727b", "#dfe2e6"
SAMPLED = "#1d6f8f"  # of prompts that were selected
OTHERS = ("#7a5ea8", "#4f8a4b", "#b0475a", "#a58a2c")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's own font
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.unicode_minus": True,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

# Panels of the training curves that every method has: key of metrics.jsonl, title, what it means.
COMMON_CURVES = (
    ("gradient_norm", "Gradient norm", "before clipping"),
    ("watch/benign_refused", "Benign prompts refused", "share, measured while training"),
    ("watch/borderline_refused", "Borderline prompts refused", "share, measured while training"),
)


def color(method: str, methods: Sequence[str]) -> str:
    """A method's colour, the same in every figure and in the page."""
    others = [name for name in methods if name not in METHODS or not METHODS[name].color]
    return OTHERS[others.index(method) % len(OTHERS)] if method in others else METHODS[method].color


def worst_case_bars(results: Results) -> str:
    """Worst-case attack success per method, over text attacks and over all attacks, with intervals and one dot per seed."""
    groups = [name for name in (WORST_TEXT, WORST) if any((m, name) in results.attack_rates for m in results.methods)]
    with matplotlib.rc_context(STYLE):
        height = 0.75 + 0.42 * len(groups) * len(results.methods)
        figure = Figure(figsize=(8.6, height))
        axes = figure.add_axes((0.13, 0.42 / height, 0.76, 1 - 0.75 / height))
        ticks, y = [], 0.0
        for group in groups:
            axes.text(0, y - 0.72, measure_title(group), fontsize=10, color=INK, weight="bold", va="center")
            for method in results.methods:
                if (method, group) in results.attack_rates:
                    _bar(axes, results, method, group, y)
                ticks.append((y, title(method)))
                y += 1
            y += 1.1
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], color=INK)
        axes.set_ylim(y - 1.5, -1.15)
        axes.set_xlim(0, 1.0)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        return _svg(figure, "worst")


def _bar(axes: Axes, results: Results, method: str, group: str, y: float) -> None:
    rate, low, high = results.attack_rates[method, group]
    shade = color(method, results.methods)
    axes.barh(y, rate, height=0.62, color=shade, alpha=0.85, linewidth=0)
    axes.plot([low, high], [y, y], color=INK, linewidth=1.1, solid_capstyle="butt", clip_on=False)
    axes.plot([low, high], [y, y], "|", color=INK, markersize=7, clip_on=False)
    per_seed = [row["rate"] for row in results.rows if row["method"] == method and row["attack"] == group]
    if len(per_seed) > 1:
        axes.plot(per_seed, [y] * len(per_seed), "o", markersize=4, color="white", markeredgecolor=INK, markeredgewidth=0.8, clip_on=False)
    axes.text(1.1, y, f"{100 * rate:.0f} %", va="center", ha="right", weight="bold", fontsize=11)


def refusals(results: Results) -> str | None:
    """The measure of what robustness costs: over-refusal, or where no borderline prompts were given the benign prompts refused."""
    measured = {name for _, name in results.utility_rates}
    return next((name for name in ("over_refusal", "benign_refusal") if name in measured), None)


def trade_off(results: Results, sweep: Sequence[Point] = ()) -> str:
    """Worst-case attack success against over-refusal, a large mark per method with both intervals, a small one per seed; "" without either.

    The points of a sweep are joined per method, each with its intervals. A model that refuses everything is broken by nothing: it is
    drawn in, at the end of the scale.
    """
    measure = refusals(results)
    if measure is None:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.0))
        axes = figure.add_axes((0.18, 0.13, 0.75, 0.78))
        _names(axes, results.methods)
        axes.plot(1, 0, "X", markersize=9, color=FAINT, clip_on=False)
        axes.text(0.965, 0.02, "refuses everything", fontsize=8.5, color=FAINT, ha="right", va="bottom")
        for method in results.methods:
            if (method, measure) not in results.utility_rates or (method, WORST) not in results.attack_rates:
                continue
            x, x_low, x_high = results.utility_rates[method, measure]
            y, y_low, y_high = results.attack_rates[method, WORST]
            shade = color(method, results.methods)
            axes.plot([x_low, x_high], [y, y], color=shade, linewidth=1.2, clip_on=False)
            axes.plot([x, x], [y_low, y_high], color=shade, linewidth=1.2, clip_on=False)
            refused = {r["seed"]: r["rate"] for r in results.utility if r["method"] == method and r["measure"] == measure}
            broken = {r["seed"]: r["rate"] for r in results.rows if r["method"] == method and r["attack"] == WORST}
            for seed in sorted(refused.keys() & broken.keys()) if len(results.seeds) > 1 else ():
                axes.plot(refused[seed], broken[seed], "o", markersize=4, color="white", markeredgecolor=shade, clip_on=False)
            axes.plot(x, y, "o", markersize=10, color=shade, clip_on=False)
        _join(axes, sweep, measure, results.methods)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        ticks, names = np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)]
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set_xlabel(measure_title(measure))
        axes.set_ylabel("Broken by any attack")
        axes.annotate("better", (0.02, 0.02), xytext=(0.2, 0.2), color=FAINT, ha="center", arrowprops={"arrowstyle": "->", "color": FAINT})
        return _svg(figure, "trade")


def price(results: Results, sweep: Sequence[Point]) -> str:
    """Worst-case attack success against the operations per seed, the points of a sweep joined per method; "" without a sweep."""
    if not curves_of(sweep, "flops"):
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.8))
        axes = figure.add_axes((0.19, 0.18, 0.77, 0.7))
        _names(axes, [method for method in results.methods if method in curves_of(sweep, "flops")])
        _join(axes, sweep, "flops", results.methods)
        axes.set_ylim(0, 1)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        axes.set_ylabel("Broken by any attack")
        axes.xaxis.set_major_formatter(lambda operations, _: f"{operations / 1e12:,.3g}")
        axes.set_xlabel("TFLOP per seed, sampling included")
        return _svg(figure, "price")


def _join(axes: Axes, sweep: Sequence[Point], across: str, methods: Sequence[str]) -> None:
    """Draws each method's points of a sweep along an axis, joined in its order, with the intervals of attack success."""
    for method, line in curves_of(sweep, across).items():
        shade, x = color(method, methods), [at(point, across) or 0.0 for point in line]
        axes.plot(x, [point.broken[0] for point in line], color=shade, linewidth=1.4, marker="o", markersize=4, clip_on=False)
        for place, point in zip(x, line):
            axes.plot([place, place], point.broken[1:], color=shade, linewidth=0.8, alpha=0.6, clip_on=False)


def more_tries(results: Results, attack: str) -> str:
    """Share of behaviors that an attack has broken after k attempts, over the seeds; "" when nobody got more than one attempt."""
    most = max((len(row) for tries in results.tries[attack].values() for row in tries), default=0)
    if most < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.8))
        axes = figure.add_axes((0.14, 0.18, 0.82, 0.7))
        _names(axes, results.methods)
        for method in results.methods:
            rows = [row for (name, _), tries in results.tries[attack].items() if name == method for row in tries if len(row) == most]
            if rows:
                share = np.maximum.accumulate(np.array(rows), axis=1).mean(axis=0)
                shade = color(method, results.methods)
                axes.plot(np.arange(1, most + 1), share, color=shade, linewidth=1.8, marker="o", markersize=3.5, clip_on=False)
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(most.bit_length())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        axes.set_xlabel("attempts per behavior")
        return _svg(figure, f"tries-{attack}".replace(":", "-"))


def success_curve(results: Results, quantity: str) -> str:
    """Share of behaviors broken over a quantity of an attack, such as its radius, with 95 % intervals."""
    by_method = results.curves[quantity]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.8))
        axes = figure.add_axes((0.14, 0.18, 0.82, 0.7))
        _names(axes, [method for method in results.methods if method in by_method])
        for method in (method for method in results.methods if method in by_method):
            at = np.array(list(by_method[method]))
            rates = np.array(list(by_method[method].values()))
            shade = color(method, results.methods)
            axes.fill_between(at, rates[:, 1], rates[:, 2], color=shade, alpha=0.15, linewidth=0)
            axes.plot(at, rates[:, 0], color=shade, linewidth=1.8, marker="o", markersize=3.5, clip_on=False)
        axes.set_ylim(0, 1)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        axes.set_xlabel(quantity)
        return _svg(figure, "curve-" + "".join(letter for letter in quantity if letter.isalnum()))


def curves(metrics: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], methods: Sequence[str]) -> str:
    """Training curves, one panel per measured quantity: a faint line per seed, the mean over seeds on top; "" when nothing was trained."""
    terms = {term.key: (term.key, term.title, term.meaning) for method in METHODS.values() for term in method.terms}
    panels = [panel for panel in (*terms.values(), *COMMON_CURVES) if any(panel[0] in line for lines in metrics.values() for line in lines)]
    if not panels:
        return ""
    columns, rows = 3, -(-len(panels) // 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.35 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (key, name, meaning) in zip(grid, panels):
            for method in methods:
                runs = [_series(metrics[run], key) for run in metrics if run[0] == method]
                _curve(axes, [run for run in runs if len(run)], color(method, methods), title(method))
            axes.set_title(name, pad=14)
            axes.text(0, 1.03, meaning, transform=axes.transAxes, fontsize=8, color=FAINT)
            axes.margins(x=0)
            axes.tick_params(labelsize=8.5)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        trained = [method for method in methods if any(run[0] == method for run in metrics)]
        for number, method in enumerate(trained):
            grid[0].text(
                0.97, 0.93 - 0.11 * number, title(method), transform=grid[0].transAxes, color=color(method, methods), weight="bold",
                fontsize=9, ha="right", va="top",
            )  # fmt: skip
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step", fontsize=8.5)
        return _svg(figure, "curves")


def likelihoods(prompts: Sequence[Mapping[str, Any]]) -> str:
    """Histogram of the samples' log-likelihood per token, the selected ones on top; "" when no sample has one."""
    scored = [p for p in prompts if p.get("log_likelihood") is not None and p.get("tokens")]
    if len(scored) < 2:
        return ""
    values = np.array([p["log_likelihood"] / p["tokens"] for p in scored])
    chosen = np.array([bool(p["selected"]) for p in scored])
    low, high = np.quantile(values, [0.005, 1.0])
    edges = np.linspace(low, max(high, low + 1e-6), 41).tolist()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.1), layout="constrained")
        axes = figure.subplots()
        axes.hist(values, edges, color="#c9ced4")
        axes.hist(values[chosen], edges, color=SAMPLED)
        axes.text(0.02, 0.97, "all samples", transform=axes.transAxes, color=FAINT, weight="bold", va="top", fontsize=9)
        axes.text(0.02, 0.84, "selected for training", transform=axes.transAxes, color=SAMPLED, weight="bold", va="top", fontsize=9)
        axes.set_xlabel("log-likelihood of the prompt, nats per token")
        axes.grid(axis="x", visible=False)
        return _svg(figure, "likelihoods")


def _names(axes: Axes, methods: Sequence[str]) -> None:
    """The methods' names in their colours above the axes, instead of a legend."""
    at = 0.0
    for method in methods:
        axes.text(at, 1.06, title(method), transform=axes.transAxes, color=color(method, methods), weight="bold", fontsize=11)
        at += 0.05 + 0.03 * len(title(method))


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(step, value) pairs of a key, averaged over windows so that a long run stays readable: at most 120 points."""
    pairs = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None], float).reshape(-1, 2)
    window = max(1, -(-len(pairs) // 120))
    return np.array([pairs[i : i + window].mean(axis=0) for i in range(0, len(pairs), window)])


def _curve(axes: Axes, runs: Sequence[np.ndarray], shade: str, name: str) -> None:
    for run in runs:
        axes.plot(run[:, 0], run[:, 1], color=shade, alpha=0.3 if len(runs) > 1 else 1.0, linewidth=0.9 if len(runs) > 1 else 1.5)
    if len(runs) > 1:
        length = min(len(run) for run in runs)
        mean = np.mean([run[:length] for run in runs], axis=0)
        axes.plot(mean[:, 0], mean[:, 1], color=shade, linewidth=1.8, label=name)


def _svg(figure: Figure, name: str) -> str:
    """The figure's <svg> element, the same bytes for the same data; `name` keeps ids of several figures in one page apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace('id="', f'id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")
