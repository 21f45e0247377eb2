"""The report's figures as SVG text, for inlining into a page: trade-off, curves over tries and training, likelihood of the samples.

They are narrow, so that their words can be read on a phone, have no legend, which the page has, and follow the reader's colours.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dat_jax.methods import METHODS
from dat_jax.report import html, palette
from dat_jax.report.comparison import Point, at
from dat_jax.report.comparison import curves as curves_of
from dat_jax.report.finding import refusals
from dat_jax.report.palette import BAR, FAINT, INK, PAPER, RULE, color
from dat_jax.report.results import Results
from dat_jax.report.wording import WORST, measure_title, title, workdir_of

# Of the workdirs of a comparison, in their order: a mark and a line.
SHAPES = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", (0, (5, 1))), ("P", (0, (1, 1))))
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's own font
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
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
    ("watch/broken", "Watched behaviors broken", "by any of the attacks that were run while training"),
    ("watch/benign_refused", "Benign prompts refused", "share, measured while training"),
    ("watch/borderline_refused", "Borderline prompts refused", "share, measured while training"),
)


def shape(method: str, methods: Sequence[str]) -> tuple[Any, Any]:
    """The mark and the line of a model: those of its workdir."""
    workdirs = list(dict.fromkeys(map(workdir_of, methods)))
    return SHAPES[workdirs.index(workdir_of(method)) % len(SHAPES)]


def key(method: str, methods: Sequence[str]) -> str:
    """A model's mark, for the page's legend."""
    ways = {
        "o": '<circle cx="7" cy="7" r="5"/>', "s": '<rect x="2" y="2" width="10" height="10"/>', "^": '<path d="M7 1 13 13H1z"/>',
        "D": '<path d="M7 0 14 7 7 14 0 7z"/>', "v": '<path d="M7 13 1 1h12z"/>', "P": '<path d="M5 0h4v5h5v4h-5v5h-4v-5h-5v-4h5z"/>',
    }  # fmt: skip
    way = ways[shape(method, methods)[0]]
    fill = f"fill:var(--{palette.variable(color(method, methods))})"
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true" style="{fill}">{way}</svg>'


def trade_off(results: Results, points: Sequence[Point] = ()) -> str:
    """Worst-case attack success against over-refusal, a large mark per model with both intervals, a small one per seed; "" without either.

    points: of several workdirs, whose lines are joined. A model that refuses everything is broken by nothing: it is drawn in, at the end of
    the scale.
    """
    measure = refusals(results)
    shown = [m for m in results.methods if (m, measure) in results.utility_rates and (m, WORST) in results.attack_rates]
    if measure is None or not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.0))
        axes = figure.add_axes((0.17, 0.13, 0.75, 0.84))
        axes.plot(1, 0, "X", markersize=9, color=FAINT, clip_on=False)
        axes.text(0.97, 0.025, "refuses everything", fontsize=9.5, color=FAINT, ha="right", va="bottom")
        for method in shown:
            x, x_low, x_high = results.utility_rates[method, measure]
            y, y_low, y_high = results.attack_rates[method, WORST]
            shade, (mark, _) = color(method, results.methods), shape(method, results.methods)
            axes.plot([x_low, x_high], [y, y], color=shade, linewidth=1.2, clip_on=False)
            axes.plot([x, x], [y_low, y_high], color=shade, linewidth=1.2, clip_on=False)
            refused = {r["seed"]: r["rate"] for r in results.utility if r["method"] == method and r["measure"] == measure}
            broken = {r["seed"]: r["rate"] for r in results.rows if r["method"] == method and r["attack"] == WORST}
            for seed in sorted(refused.keys() & broken.keys()) if len(results.seeds) > 1 else ():
                axes.plot(refused[seed], broken[seed], mark, markersize=4, color=PAPER, markeredgecolor=shade, clip_on=False)
            axes.plot(x, y, mark, markersize=10, color=shade, clip_on=False)
        _join(axes, points, measure, results.methods)
        axes.set_xlim(0, 1)
        _shares(axes)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        axes.set_xlabel(measure_title(measure))
        axes.set_ylabel("Broken by any attack")
        rates = (
            f"{title(m)} {html.percent(results.attack_rates[m, WORST][0])} and {html.percent(results.utility_rates[m, measure][0])}"
            for m in shown
        )
        return _svg(figure, "trade", results.methods, f"Broken by any attack and over-refusal: {'; '.join(rates)}")


def price(results: Results, points: Sequence[Point]) -> str:
    """Worst-case attack success against the operations per seed, the points of several workdirs joined; "" where there is no line."""
    if not curves_of(points, "flops"):
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel()
        _join(axes, points, "flops", results.methods)
        axes.xaxis.set_major_formatter(lambda operations, _: f"{operations / 1e12:,.3g}")
        axes.set_xlabel("TFLOP per seed, sampling included")
        return _svg(figure, "price", results.methods, "Broken by any attack over the operations per seed")


def _join(axes: Axes, points: Sequence[Point], across: str, methods: Sequence[str]) -> None:
    """Draws each line of points along an axis, joined in its order, with the intervals of attack success."""
    for line in curves_of(points, across):
        shade, x = color(line[0].method, methods), [at(point, across) or 0.0 for point in line]
        axes.plot(x, [point.broken[0] for point in line], color=shade, linewidth=1.4, clip_on=False)
        for place, point in zip(x, line):
            axes.plot(place, point.broken[0], shape(point.method, methods)[0], color=shade, markersize=5, clip_on=False)
            axes.plot([place, place], point.broken[1:], color=shade, linewidth=0.8, alpha=0.6, clip_on=False)


def _panel() -> tuple[Figure, Axes]:
    """A small figure with one axis of shares."""
    figure = Figure(figsize=(3.6, 2.3))
    axes = figure.add_axes((0.19, 0.21, 0.77, 0.74))
    _shares(axes)
    return figure, axes


def _shares(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])


def more_tries(results: Results, attack: str) -> str:
    """Share of behaviors that an attack has broken after k attempts, over the seeds; "" when nobody got more than one attempt."""
    most = max((len(row) for tries in results.tries[attack].values() for row in tries), default=0)
    if most < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel()
        for method in results.methods:
            rows = [row for (name, _), tries in results.tries[attack].items() if name == method for row in tries if len(row) == most]
            if rows:
                share = np.maximum.accumulate(np.array(rows), axis=1).mean(axis=0)
                _line(axes, np.arange(1, most + 1), share, method, results.methods)
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(most.bit_length())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("attempts per behavior")
        return _svg(figure, f"tries-{attack}", results.methods, f"Share of behaviors broken over attempts, {attack}")


def success_curve(results: Results, quantity: str) -> str:
    """Share of behaviors broken over a quantity of an attack, such as its radius, with 95 % intervals."""
    by_method = results.curves[quantity]
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel()
        for method in (method for method in results.methods if method in by_method):
            rates = np.array(list(by_method[method].values()))
            shade, x = color(method, results.methods), list(by_method[method])
            axes.fill_between(x, rates[:, 1], rates[:, 2], color=shade, alpha=0.15, linewidth=0)
            _line(axes, x, rates[:, 0], method, results.methods)
        axes.set_xlabel(quantity)
        return _svg(figure, f"curve-{quantity}", results.methods, f"Share of behaviors broken over {quantity}")


def _line(axes: Axes, x: Any, y: Any, method: str, methods: Sequence[str]) -> None:
    mark, line = shape(method, methods)
    axes.plot(x, y, color=color(method, methods), linewidth=1.8, marker=mark, markersize=4, linestyle=line, clip_on=False)


def curves(metrics: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Training curves: (title, meaning, figure) per measured quantity: a faint line per seed, the mean over seeds on top."""
    terms = {term.key: (term.key, term.title, term.meaning) for method in METHODS.values() for term in method.terms}
    found = []
    for name, shown, meaning in (*terms.values(), *COMMON_CURVES):
        series = {run: drawn for run, lines in metrics.items() if len(drawn := _series(lines, name))}
        if not series:
            continue
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(3.6, 2.1))
            axes = figure.add_axes((0.14, 0.21, 0.82, 0.74))
            for method in methods:
                _curve(axes, [series[run] for run in series if run[0] == method], color(method, methods), shape(method, methods)[1])
            axes.margins(x=0)
            axes.set_xlabel("step")
            found.append((shown, meaning, _svg(figure, f"training-{name}", methods, f"{shown} over the steps of the training")))
    return found


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
        axes.hist(values, edges, color=BAR)
        axes.hist(values[chosen], edges, color=FAINT)
        axes.set_xlabel("log-likelihood of the prompt, nats per token")
        axes.grid(axis="x", visible=False)
        return _svg(figure, "likelihoods", (), "Histogram of the log-likelihood of all samples and of those selected for training")


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(step, value) pairs of a key, averaged over windows so that a long run stays readable: at most 120 points."""
    pairs = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None], float).reshape(-1, 2)
    window = max(1, -(-len(pairs) // 120))
    return np.array([pairs[i : i + window].mean(axis=0) for i in range(0, len(pairs), window)])


def _curve(axes: Axes, runs: Sequence[np.ndarray], shade: str, line: Any) -> None:
    several = len(runs) > 1
    for run in runs:
        axes.plot(run[:, 0], run[:, 1], color=shade, alpha=0.3 if several else 1.0, linewidth=0.9 if several else 1.5, linestyle=line)
    if several:
        length = min(len(run) for run in runs)
        mean = np.mean([run[:length] for run in runs], axis=0)
        axes.plot(mean[:, 0], mean[:, 1], color=shade, linewidth=1.8, linestyle=line)


def _svg(figure: Figure, name: str, methods: Sequence[str], said: str) -> str:
    """The figure's <svg> element, the same bytes for the same data; `name` keeps ids of several figures in one page apart.

    said: what a reader hears who does not see it.
    """
    name = "".join(letter if letter.isalnum() else "-" for letter in name)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    drawn = drawn[drawn.index("<svg") :].replace('id="', f'id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")
    return palette.follow(drawn.replace("<svg ", f'<svg role="img" aria-label="{html.text(said)}" ', 1), methods)
