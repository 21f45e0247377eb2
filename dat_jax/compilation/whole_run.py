"""The whole run from the bounds of its programs: how often each runs, the least hours, chip-hours, and dollars at the list price."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.compilation.chips import GIB, Chip
from dat_jax.compilation.programs import TEMPLATE_TOKENS
from dat_jax.compilation.published import architecture
from dat_jax.compilation.report import Account
from dat_jax.data.behaviors import Behavior, load_behaviors
from dat_jax.data.rewrites import RULES, make_rewrites
from dat_jax.diffusion.passes import padded_block, passes_cost
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.selection import JUDGED
from dat_jax.diffusion.utility import SampledUtility
from dat_jax.judges import local_models
from dat_jax.methods import METHODS
from dat_jax.settings import read

# Of files that are not there when a run is compiled: Continuous-AdvTrain's behaviors, HarmBench's text behaviors without a context,
# XSTest's safe prompts.
ABSENT = {"data.behaviors": 100, "data.eval_behaviors": 200, "prompts": 250}

# Fast infilling whose passes are known in advance; docs/speed.md has what it saves and what it does to prompts.
FAST = {"sampler.acceptance": "count", "sampler.bound": 2.0, "sampler.cache_refresh": 4, "sampler.cfg_scale": 0.0}

WITHOUT_SPLASH = ("v5e:2x2",)  # where libtpu 0.0.52 ends in an internal error on the splash kernel's train step


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the run: `times` runs of a compiled program."""

    name: str
    program: str
    times: float


@dataclasses.dataclass
class Counting:
    """Stands for the model under attack; counts what the embedding attack's program would do, in steps on a whole batch."""

    batch: int
    steps: float = 0.0

    def perturb(self, attempts: Sequence[Attempt], how: Any, restart: int = 0, onward: bool = False) -> list[Attempt]:
        """Returns the attempts as they came."""
        del restart, onward
        self.steps += math.ceil(len(attempts) / self.batch) * how.steps
        return list(attempts)


def behaviors(config: ConfigDict, key: str) -> list[Behavior]:
    """The behaviors of a file; where it is not there, as many as the published one has."""
    path = config.data[key.split(".")[1]]
    if path and all(os.path.exists(part) for part in str(path).split(",")):
        return load_behaviors(path, "")
    target = "Sure, here is how to paint the gate: take a brush"
    return [Behavior(f"behavior {i}", "Paint the gate", (target,), ()) for i in range(ABSENT[key])]


def countable(attack: Attack) -> bool:
    """Whether its attempts follow from the settings: nothing that a model, a tokenizer, a rewriter or a file says decides them."""
    asks = attack.given or attack.uses_rewriter or attack.uses_judge or (attack.adaptive and attack.surface == "text")
    return not (asks or attack.surface == "latent" or "tokens" in attack.curve)


def evaluation(config: ConfigDict) -> tuple[float, float, list[str]]:
    """Returns the batches that are answered and the embedding attack's steps on a batch, per model, and the attacks not counted."""
    asked, batch, left_out, answered = behaviors(config, "data.eval_behaviors"), config.evaluation.batch_size, [], 0.0
    asked = asked[: config.evaluation.behaviors or None]
    rewrites = make_rewrites(asked)
    forms = [form for form in config.evaluation.forms or RULES if form in RULES]
    counting = Counting(batch)
    for name in config.evaluation.attacks:
        attack = ATTACKS[name]
        if not countable(attack):
            left_out.append(name)
            continue
        own = attack.read_settings(config)
        for variant in attack.variants(own, forms):
            answered += math.ceil(len(attack.attempts(asked, counting, Context(0, own, variant, rewrites))) / batch)
    sets = sum(bool(config.data[name]) for name in ("benign", "borderline"))
    answered += sets * math.ceil((config.evaluation.utility_prompts or ABSENT["prompts"]) / batch)
    return answered, counting.steps, left_out


def parts(config: ConfigDict) -> tuple[list[Part], list[str]]:
    """How often one seed of the run runs each program, and the attacks that are not counted."""
    names, models = config.training.methods, max(1, len(config.training.methods)) + len(config.evaluation.compare)
    trained = [METHODS[name] for name in names if METHODS[name].trains]
    found = [Part(f"training, {len(trained)} methods", "train_step", len(trained) * config.training.steps), *watching(config, len(trained))]
    if any(method.refusals == "own" for method in trained):  # asked once for all of them
        asked = math.ceil(len(behaviors(config, "data.behaviors")) / config.evaluation.batch_size)
        found.append(Part("training: own refusals", "decoder", asked))
    sampled = sum(method.prompts == "sampled" for method in trained)
    if config.sampler.model and (sampled or config.utility.samples):
        found += drawing(config, sampled)
    answered, steps, left_out = evaluation(config)
    searched = steps / ATTACKS["embedding"].read_settings(config).perturbation.steps
    found += [Part("answers", "decoder", models * answered), Part("embedding attacks", "embedding_attack", models * searched)]
    return [part for part in found if part.times], left_out


def watching(config: ConfigDict, trained: int) -> list[Part]:
    """The answers to benign and borderline prompts that are measured during the trainings."""
    training, sets = config.training, sum(bool(config.data[name]) for name in ("benign", "borderline"))
    if not (training.watch_every and sets and trained):
        return []
    asked = math.ceil(min(training.watch_prompts, ABSENT["prompts"]) / config.evaluation.batch_size)
    return [Part("training: watched prompts", "decoder", trained * math.ceil(training.steps / training.watch_every) * sets * asked)]


def drawing(config: ConfigDict, methods: int) -> list[Part]:
    """What drawing prompts takes, and the target's answers to them where the selection asks; methods: those that train on samples.

    All prompts count as different ones: the target is asked once for equal ones.
    """
    pool, utility, batch = read(Pool, config.sampler), read(SampledUtility, config.utility), config.evaluation.batch_size
    rows = len(behaviors(config, "data.behaviors")) * pool.samples
    # The program draws exactly. Fast infilling counts by its share of the operations; a draw of the bound reads as much as an exact step.
    each = of_exact(config) + pool.likelihood_samples / pool.settings(()).steps
    drawn = math.ceil(rows / pool.batch_size) * each
    asked = math.ceil(rows / batch) if pool.selection in JUDGED else 0
    once = min(1, methods)
    found = [Part("sampling prompts", "sampler", once * drawn), Part("sampling: the target's answers", "decoder", once * asked)]
    if pool.refresh_every:  # a round before the training, and one after every so many steps but the last
        again = methods * ((config.training.steps - 1) // pool.refresh_every)
        found += [Part("sampling again", "sampler", again * drawn), Part("sampling again: the target's answers", "decoder", again * asked)]
    if utility.samples:
        wanted = utility.answers * utility.samples
        found.append(Part("sampling utility prompts", "sampler", math.ceil(wanted / pool.batch_size) * of_exact(config)))
        found.append(Part("sampling utility prompts: the target's answers", "decoder", math.ceil(wanted / batch) if utility.asks else 0))
    return found


def of_exact(config: ConfigDict) -> float:
    """Returns the operations of drawing a batch as configured over those of exact sampling; 1 where the passes depend on the model."""
    pool = read(Pool, config.sampler)
    if pool.acceptance != "count":
        return 1.0
    model, longest = architecture(config.sampler), pool.prompt_tokens[1]
    passes = math.ceil(longest / max(1, int(pool.bound)))
    full = math.ceil(passes / pool.cache_refresh)
    block = padded_block(pool, longest + TEMPLATE_TOKENS, model)
    exact = dataclasses.replace(pool, acceptance="quota", cache_refresh=1)
    fast = passes_cost(pool, model, block, 1, full, passes - full, 0)["flops"]
    return fast / passes_cost(exact, model, block, 1, exact.settings(()).steps, 0, 0)["flops"]


def faster(config: ConfigDict) -> ConfigDict | None:
    """Returns the run with fast infilling; None where it does not sample exactly, or not at all."""
    if not config.sampler.model or config.sampler.acceptance != "quota":
        return None
    fast = config.copy_and_resolve_references()
    fast.update_from_flattened_dict(FAST)
    return fast


def uncounted(config: ConfigDict) -> list[str]:
    """The keys and judges by which a run does something that is in none of its parts, attacks aside."""
    data, sampled = config.data, bool(config.sampler.model)
    found = {
        "training.flops, in place of which training.steps counts": config.training.flops,
        "training.watch_attacks": config.training.watch_attacks,
        "sampler.preference": sampled and config.sampler.refresh_every and config.sampler.preference.steps,
        "sampler.consistency": sampled and config.sampler.consistency,
        "sampler.mend": sampled and config.sampler.mend,
        "passes that sampler.acceptance saves": sampled and config.sampler.acceptance not in ("quota", "count"),
        "padding that evaluation.prompt_block saves": 0 < config.evaluation.prompt_block < config.data.prompt_length,
        "utility.answers of a file of chats": sampled and config.utility.samples and not config.utility.answers,
        "utility.keep": sampled and config.utility.samples and config.utility.keep == "likelihood",
        "the contrasts of data.unsafe or data.borderline": data.unsafe or data.borderline.endswith(".csv"),
    }
    files = {"harmful": data.eval_behaviors, "chats": data.heldout_chats, "tasks": data.tasks, "attacks": True}
    taken = [name for name in config.evaluation.measures if files[name]]
    found["evaluation.measures: " + ", ".join(taken)] = taken
    models = local_models(config.evaluation.judges, config)
    found["the judges " + ", ".join(models)] = models
    return [what for what, there in found.items() if there]


def record(found: Sequence[Part], left_out: Sequence[str], accounts: Sequence[Account], besides: Sequence[str] = ()) -> dict[str, Any]:
    """The bound as JSON: hours by part, chip-hours and dollars; {} where not all programs were compiled.

    left_out: attacks that are not counted; besides: what else is not, see `uncounted`.

    Of several train steps, those of methods whose programs differ, the slowest one counts for all.
    """
    seconds: dict[str, float] = {}
    for a in accounts:
        seconds[a.name] = max(a.seconds, seconds.get(a.name, 0.0))
    if not {part.program for part in found} <= seconds.keys():
        return {}
    hours = {part.name: part.times * seconds[part.program] / 3600 for part in found}
    chip = accounts[0].chip
    chip_hours = accounts[0].devices / chip.devices * sum(hours.values())
    return {
        "times": {part.name: part.times for part in found}, "hours": hours, "chip_hours": chip_hours,
        "dollars": chip_hours * chip.dollars_per_hour, "not_counted": list(left_out),
        "without_program": list(besides),
    }  # fmt: skip


def text(bound: Mapping[str, Any], chip: Chip) -> str:
    """The bound as lines to read."""
    lines = ["the whole run, one seed, at least (the bound of each program times how often it runs):"]
    lines += [f"  {hours:8.2f} h  {name}: {bound['times'][name]:.0f} times" for name, hours in bound["hours"].items()]
    price = f", {bound['dollars']:.0f} dollars at {chip.dollars_per_hour:.2f} an hour" if chip.dollars_per_hour else ""
    lines.append(f"  {sum(bound['hours'].values()):8.2f} h  together: {bound['chip_hours']:.0f} chip-hours{price}")
    if bound["not_counted"]:
        lines.append(f"  not counted, as files or the model decide what they try: {', '.join(bound['not_counted'])}")
    if bound.get("without_program"):
        lines.append(f"  not counted, as none of these programs does it: {'; '.join(bound['without_program'])}")
    return "\n".join(lines)


def fast_text(bound: Mapping[str, Any], chip: Chip) -> str:
    """The bound with fast infilling as a line to read."""
    keys = " ".join(f"--config.{key}={value}" for key, value in FAST.items())
    price = f", {bound['dollars']:.0f} dollars" if chip.dollars_per_hour else ""
    said = f"{sum(bound['hours'].values()):.2f} h, {bound['chip_hours']:.0f} chip-hours{price}"
    return f"with fast infilling, counted by its operations: {said}; the options: {keys}"


Slice = tuple[str, dict[str, int], float]  # topology, sizes of data, fsdp and tensor, bytes per device


def smaller(topology: str, mesh: Mapping[str, int], accounts: Sequence[Account], saved: Mapping[str, float] | None = None) -> list[Slice]:
    """Smaller slices of the same chip, the next one first; with `saved` the slice itself before them.

    The bytes are an estimate from above. Half of the chips double each one's activations, and where the mesh has no copy of the weights to
    give up (data), the weights too. saved: bytes of one copy of the weights by which each program's arguments are less in fewer bits.
    A compilation proves what fits.
    """
    name, grid = topology.split(":")
    found: list[Slice] = []
    sizes, chips, weights, rest = dict(mesh), _chips(grid), 1, 1
    for slice_ in reversed(accounts[0].chip.slices):
        while chips > _chips(slice_):
            axis = next((axis for axis in ("data", "fsdp", "tensor") if sizes[axis] % 2 == 0), None)
            if axis is None:
                return found
            sizes, chips, rest, weights = sizes | {axis: sizes[axis] // 2}, chips // 2, 2 * rest, weights if axis == "data" else 2 * weights
        if chips == _chips(slice_) and (rest > 1 or saved is not None):
            less = {program: bytes_ / (sizes["fsdp"] * sizes["tensor"]) for program, bytes_ in (saved or {}).items()}
            needed = max(
                weights * a.memory.arguments - less.get(a.name, 0.0) + rest * (a.memory.temporaries + a.memory.outputs) for a in accounts
            )
            found.append((f"{name}:{slice_}", sizes, needed))
    return found


def advice(
    topology: str,
    mesh: Mapping[str, int],
    accounts: Sequence[Account],
    savings: Mapping[str, Mapping[str, float]] | None = None,
    splash: Sequence[str] = (),
) -> str:
    """Which smaller slice would fit, and which in fewer bits, with the options that prove it; "" where the chip has none.

    savings: see `programs.savings`. splash: the models whose attention is that kernel.
    """
    room, lines = accounts[0].chip.hbm_bytes, []

    def line(begin: str, option: Slice, more: Sequence[str] = ()) -> str:
        found, sizes, needed = option
        keys = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
        keys += [f"--config.{key}.attention=xla" for key in splash if found in WITHOUT_SPLASH]
        return (
            f"{begin} would fit by estimate: {found}, up to {needed / GIB:.1f} of {room / GIB:.1f} GiB per chip; to be sure: "
            f"--mode=compile --config.topology={found} {' '.join([*keys, *more])}"
        )

    options = smaller(topology, mesh, accounts)
    fitting = [option for option in options if option[2] <= room]
    if fitting:
        lines.append(line("a smaller slice", fitting[-1]))
    elif options:
        least = f"{options[0][0]} would take up to {options[0][2] / GIB:.1f} of {room / GIB:.1f} GiB per chip"
        lines.append(f"no smaller slice by estimate: {least}; a smaller training.micro_batch lowers what a training step takes")
    as_it_is = fitting[-1][0] if fitting else topology if all(a.fits for a in accounts) else ""
    chips = _chips(as_it_is.split(":")[1]) if as_it_is else math.inf
    for dtype, saved in (savings or {}).items():
        fitting = [option for option in smaller(topology, mesh, accounts, saved) if option[2] <= room]
        if fitting and (fewer := _chips(fitting[-1][0].split(":")[1])) < chips:
            chips = fewer
            keys = [f"--config.{key}.dtype={dtype}" for key, name in (("target", "train_step"), ("sampler", "sampler")) if saved.get(name)]
            lines.append(line(f"with frozen weights in {dtype} a slice", fitting[-1], keys))
    return "\n".join(lines)


def _chips(grid: str) -> int:
    return math.prod(int(size) for size in grid.split("x"))
