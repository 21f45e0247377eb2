"""Which selection policy pays: DAT on the embedded world once per policy, and what each run needed to compute.

    python benchmarks/selection.py --run=runs/three [--workdir=runs/selection] [--policies=random,...] [--config.KEY=VALUE ...]

`--run` is a finished run of configs/quickstart.py; its worlds and its CAT results are the common ground. Its `--config.KEY=VALUE` are given
again. Every policy draws the same samples (their keys are those of the seed), so only the selection differs. Likelihoods are drawn and
the target is asked only for the policies that need it. FLOPs are by formula, as results.json has them: drawing with its likelihoods, the
target's answers to all samples, training. Printed per policy: those, what was selected, the share of behaviors broken by text and by
everything (95 % intervals over the behaviors of all seeds), over-refusal, and percentage points below CAT per TFLOP of all three. A killed
run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from dat_jax.diffusion.selection import LIKELY, POLICIES
from dat_jax.report.wording import WORST, WORST_TEXT

CONFIG = "configs/quickstart.py"
HEADER = (
    "| policy | TFLOPs drawing | asking | training | selected: grammatical | broken by text | by all | over-refusal | benign exact "
    "| points below CAT per TFLOP |\n|---|" + 9 * "---:|"
)


def train_and_attack(policy: str, run: pathlib.Path, folder: pathlib.Path, seeds: list[int], settings: list[str]) -> None:
    """Runs sampling, DAT and its evaluation with one policy on the worlds of `run`."""
    for seed in seeds:
        world = folder / f"seed_{seed}" / "world"
        if not world.exists():
            shutil.copytree(run / f"seed_{seed}" / "world", world.with_suffix(".partial"), dirs_exist_ok=True)
            world.with_suffix(".partial").rename(world)
    options = {"sampler.selection": policy, "seeds": ",".join(map(str, seeds)), "training.methods": "dat"}
    if policy not in LIKELY:
        options["sampler.likelihood_samples"] = "0"
    command = [sys.executable, "-m", "dat_jax.main", f"--config={CONFIG}", f"--workdir={folder}"]
    subprocess.run([*command, *(f"--config.{key}={value}" for key, value in options.items()), *settings], check=True)


def computed(folder: pathlib.Path, seed: int, method: str) -> dict[str, float]:
    """TFLOPs of a run by formula: drawing (with likelihoods), asking the target about the samples, training."""
    results = json.loads((folder / "results.json").read_text())
    training = next(line["training"] for line in results["flops"] if (line["method"], line["seed"]) == (method, seed))
    sampling = next((cost for cost in results["costs"] if cost["seed"] == seed), {}) if method == "dat" else {}
    found = {"training": training, "drawing": sampling.get("flops", 0.0), "asking": sampling.get("asking_flops", 0.0)}
    return {name: count / 1e12 for name, count in found.items()}


def rates(folder: pathlib.Path, method: str) -> dict[str, dict]:
    """Attack or measure -> its rate over all seeds with the interval, from results.json."""
    results = json.loads((folder / "results.json").read_text())
    lines = [*results["over_seeds"], *results["utility_over_seeds"]]
    return {line.get("attack") or line["measure"]: line for line in lines if line["method"] == method}


def row(name: str, folder: pathlib.Path, method: str, seeds: list[int], base: float) -> str:
    """One line of the table; `base` is the share of behaviors that text breaks for CAT."""
    costs = [computed(folder, seed, method) for seed in seeds]
    drawing, asking, training = (sum(cost[key] for cost in costs) / len(seeds) for key in ("drawing", "asking", "training"))
    found, chosen, pay = rates(folder, method), "-", "-"
    if method == "dat":
        censuses = [json.loads((folder / f"seed_{seed}" / "prompts" / "census.json").read_text())["selected"] for seed in seeds]
        chosen = f"{100 * sum(census['grammatical'] for census in censuses) / len(seeds):.0f} %"
        pay = f"{100 * (base - found[WORST_TEXT]['rate']) / (drawing + asking + training):.1f}"
    spans = (f"{100 * found[x]['rate']:.0f} % [{100 * found[x]['low']:.0f}, {100 * found[x]['high']:.0f}]" for x in (WORST_TEXT, WORST))
    utility = (f"{100 * found[x]['rate']:.0f} %" for x in ("over_refusal", "exact_utility"))
    return f"| {' | '.join([name, f'{drawing:.2f}', f'{asking:.2f}', f'{training:.1f}', chosen, *spans, *utility, pay])} |"


def main() -> None:
    """Runs the policies and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/selection"))
    parser.add_argument("--policies", default=",".join(POLICIES))
    arguments, settings = parser.parse_known_args()
    if unknown := [name for name in settings if not name.startswith("--config.")]:
        parser.error(f"unknown argument {unknown[0]}; allowed besides the above: --config.KEY=VALUE")
    policies = arguments.policies.split(",")
    if unknown := [name for name in policies if name not in POLICIES]:
        raise SystemExit(f"--policies: {unknown[0]!r} is unknown; allowed: {', '.join(POLICIES)}")
    if not (arguments.run / "results.json").exists():
        raise SystemExit(f"{arguments.run}/results.json: no such file; allowed: the --workdir of a finished run of {CONFIG}")
    seeds = sorted(int(path.name.removeprefix("seed_")) for path in arguments.run.glob("seed_*"))
    for policy in policies:
        train_and_attack(policy, arguments.run, arguments.workdir / policy, seeds, settings)
    base = rates(arguments.run, "cat")[WORST_TEXT]["rate"]
    print(HEADER)
    print(row("CAT", arguments.run, "cat", seeds, base))
    for policy in policies:
        print(row(policy, arguments.workdir / policy, "dat", seeds, base))


if __name__ == "__main__":
    main()
