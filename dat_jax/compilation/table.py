"""The table (docs/tpu.md) of what fits and how fast it could be: compiles programs of config files and prints a row for each.

    python -m dat_jax.compilation.table [--workdir=runs/compile] [--gpu] [configs/mine.py ...]

Without config files: RUNS, the shipped configs on several slices, or with --gpu those on GPUs. All of it takes hours on two cores. A run
whose compile.json is already below the workdir is not compiled again. A run that the compiler fails at is a row that says so.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from etils import epath

from dat_jax import compilation, presets
from dat_jax.compilation import report
from dat_jax.data.files import one_line

COLUMNS = [
    *("model", "program", "slice", "mesh", "attention"),
    *("HBM per chip", "received per chip", "FLOPs / needed", "at least", "MFU at most"),
]
WHOLE = ("model", "slice", "mesh", "sampling", "training", "evaluation", "chip-hours", "dollars")
V6E = {"topology": "v6e:2x4", "mesh.data": 2, "mesh.tensor": 4, "training.keep_products": True}
NO_ROOM = {"training.keep_products": False}  # kept, they fill the chip to its brim and are moved in and out
TEN_STEPS = {"methods.cat.perturbation.steps": 10}  # the other models' number; the paper's for Qwen is 40


@dataclasses.dataclass(frozen=True)
class Run:
    """A config file, what is changed in it (dotted keys), and which programs of it are compiled (none named: all)."""

    path: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    programs: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """A folder name that tells runs apart."""
        named = {key: "_".join(value) if isinstance(value, tuple) else str(value) for key, value in self.changes.items()}
        changes = [f"{key.split('.')[-1]}_{value.replace(':', '_')}" for key, value in named.items()]
        return "-".join([pathlib.Path(self.path).stem, *changes])


TARGET = ("train_step", "decoder", "embedding_attack")  # Llama's config shows the sampler for all three
SMALLEST = {"training.keep_products": False, "mesh.data": 1}  # what is kept does not fit, and a copy of the weights does not either
FOUR = SMALLEST | {"topology": "v5e:2x2", "mesh.tensor": 4}
EIGHT = FOUR | {"topology": "v5e:2x4", "mesh.tensor": 8}
ONE = FOUR | {"mesh.tensor": 1}
ONE_CHIP = {"topology": "v5e:1x1", "mesh.tensor": 1, "training.micro_batch": 8, "sampler.batch_size": 16, "evaluation.batch_size": 8}
V6E_CHIP = {"topology": "v6e:1x1", "training.micro_batch": 16, "sampler.batch_size": 32, "evaluation.batch_size": 16}
SPLASH = {"target.attention": "splash"}
NF4 = {"target.dtype": "nf4", "sampler.dtype": "nf4"}
# Of what LAT's published code sets for Llama-3, all that is not the method's default and shapes its program.
LAT_LLAMA_3 = {
    f"methods.lat.{key}": presets.REFERENCES["lat_llama3"][f"methods.lat.{key}"]
    for key in ("objective.retention", "objective.utility_weight", "perturbation.step_size")
}
RUNS = (
    Run("configs/llama3_tpu.py"),
    Run("configs/gemma_tpu.py", programs=TARGET),
    Run("configs/qwen2_5_tpu.py", programs=TARGET),
    Run("configs/llama3_tpu.py", V6E, ("train_step", "sampler")),
    Run("configs/gemma_tpu.py", V6E, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", V6E | NO_ROOM, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", TEN_STEPS, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", V6E | NO_ROOM | TEN_STEPS, ("train_step",)),
    Run("configs/llama3_tpu.py", {"sampler.attention": "splash"}, ("sampler",)),
    Run("configs/llama3_tpu.py", FOUR | {"target.dtype": "int8"}, ("train_step",)),
    Run("configs/llama3_tpu.py", FOUR, ("train_step",)),
    Run("configs/llama3_tpu_4chips.py"),
    Run("configs/qwen2_5_tpu.py", FOUR | NF4, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", FOUR | NF4 | {"training.micro_batch": 32, "sampler.batch_size": 64, "evaluation.batch_size": 16}),
    Run("configs/qwen2_5_tpu.py", ONE | NF4 | {"topology": "v6e:1x1", "training.micro_batch": 16}, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", FOUR | {"training.micro_batch": 8}, ("train_step",)),
    Run("configs/gemma_tpu.py", FOUR | {"training.micro_batch": 32}, ("train_step",)),
    Run("configs/gemma_tpu.py", ONE | NF4 | {"topology": "v5e:1x1", "training.micro_batch": 8}, ("train_step",)),
    Run("configs/gemma_tpu.py", FOUR | NF4, ("train_step",)),
    Run("configs/llama3_tpu.py", EIGHT, ("train_step",)),
    Run("configs/gemma_tpu.py", EIGHT, ("train_step",)),
    Run("configs/qwen2_5_tpu_8chips.py"),
    Run("configs/llama3_tpu.py", FOUR | {"topology": "v6e:2x2"}, ("train_step",)),
    Run("configs/qwen2_5_tpu.py", FOUR | {"topology": "v6e:2x2"}, ("train_step",)),
    Run("configs/llama3_tpu_4chips.py", ONE_CHIP),
    Run("configs/llama3_tpu_4chips.py", ONE_CHIP | V6E_CHIP),
    Run("configs/qwen2_5_tpu.py", FOUR | {"topology": "v5p:2x2x1"}, ("train_step",)),
    Run("configs/llama3_tpu.py", FOUR | {"topology": "tpu7x:2x2x1", "mesh.tensor": 8}, ("train_step",)),
    # Every other method; those on DAT's prompts run the same programs.
    *(
        Run("configs/llama3_tpu.py", SPLASH | {"training.methods": (method,)} | (LAT_LLAMA_3 if method == "lat" else {}), ("train_step",))
        for method in ("circuit_breakers", "lat", "capo", "derta", "refusal_sft", "r2d2", "mixat", "self_consistency")
    ),
)

NO_ATTACK = {"methods.cat.perturbation.keep_products": False}
GPU_RUNS = (  # docs/gpu.md, in the order of its tables
    Run("configs/llama3_gpu.py"),
    Run("configs/llama3_gpu.py", {"training.micro_batch": 0}, ("train_step",)),
    Run("configs/llama3_gpu.py", {"training.micro_batch": 16}, ("train_step",)),
    Run("configs/llama3_gpu.py", {"training.micro_batch": 16, "training.keep_products": True}, ("train_step",)),
    Run("configs/llama3_gpu.py", {"training.micro_batch": 32, "training.keep_products": True}, ("train_step",)),
    Run("configs/llama3_gpu_24gb.py"),
    Run("configs/llama3_gpu_24gb.py", {"training.micro_batch": 16} | NO_ATTACK, ("train_step",)),
    Run("configs/llama3_gpu_24gb.py", {"training.micro_batch": 8} | NO_ATTACK, ("train_step",)),
    Run("configs/llama3_gpu_24gb.py", {"training.micro_batch": 32} | NO_ATTACK, ("train_step",)),
    Run("configs/qwen2_5_gpu_40gb.py"),
    Run("configs/qwen2_5_gpu_40gb.py", {"training.micro_batch": 32}, ("train_step",)),
)


def compile_run(run: Run, workdir: epath.Path) -> tuple[int, dict[str, Any]]:
    """Compiles a run into its folder below workdir unless it is there; returns 1 when something does not fit or compile, and its record.

    What the compiler fails at is told in the record and not kept: another version may compile it.
    """
    path = workdir / run.folder / "compile.json"
    if path.exists():
        return 0, json.loads(path.read_text())
    config = runpy.run_path(run.path)["get_config"]()
    config.update_from_flattened_dict(run.changes)
    try:
        status = compilation.run(config, str(workdir / run.folder), run.programs)
    except compilation.CompilerError as error:
        reason = one_line(error).replace(": the compiler fails", "")[:160].replace("|", "/")
        print(f"dat_jax: {run.folder}: {reason}", file=sys.stderr)
        mesh = "x".join(str(size) for size in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor))
        about = {"target": config.target.model, "topology": config.topology, "mesh": mesh, "failed": reason, "programs": []}
        return 1, about | {key: {"target": config.target[key]} for key in ("attention", "dtype")}
    return status, json.loads(path.read_text())


def rows(records: Sequence[dict]) -> list[str]:
    """The table's rows from the contents of compile.json files."""
    lines = []
    for about in records:
        if "failed" in about:
            name, attention = named(about["target"], about["dtype"]["target"]), about["attention"]["target"]
            lines.append(
                f"| {name} | the compiler fails: {about['failed']} | {about['topology']} | {about['mesh']} | {attention} |{' - |' * 5}"
            )
        for program in about["programs"]:
            group = "sampler" if program["program"] == "sampler" else "target"
            precision = about.get("dtype", {}).get(group, "bfloat16")  # the column is the model's: most rows are in bfloat16
            lines.append(report.row(named(about[group], precision), about["topology"], about["mesh"], about["attention"][group], program))
    return lines


def named(model: str, precision: str) -> str:
    """A model's short name, with its precision unless that is bfloat16."""
    return model.split("/")[-1] + ("" if precision == "bfloat16" else f", {precision}")


def whole_rows(records: Sequence[dict]) -> list[str]:
    """A row for every run whose programs were all compiled: the least hours of its parts, chip-hours, and dollars at the list price."""
    lines = []
    for about, key in itertools.product(records, ("whole_run", "whole_run_fast")):
        if bound := about.get(key):
            hours = {kind: sum(h for part, h in bound["hours"].items() if part.startswith(kind)) for kind in ("sampling", "training")}
            rest = sum(bound["hours"].values()) - sum(hours.values())
            name = named(about["target"], about["dtype"]["target"]) + (", fast infilling" if key == "whole_run_fast" else "")
            cells = [name, about["topology"], about["mesh"]]
            cells += [f"{h:.1f} h" for h in (*hours.values(), rest)] + [f"{bound['chip_hours']:.0f}"]
            cells.append(f"{bound['dollars']:.0f}" if bound["dollars"] else "-")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def header(columns: Sequence[str]) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def main(arguments: list[str]) -> int:
    """Compiles what is missing, prints the table and returns 1 when something does not fit or does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--workdir", default="runs/compile")
    parser.add_argument("--gpu", action="store_true", help="GPU_RUNS in place of RUNS: the tables of docs/gpu.md")
    options = parser.parse_args(arguments)
    runs, workdir = [Run(path) for path in options.configs] or (GPU_RUNS if options.gpu else RUNS), epath.Path(options.workdir)
    statuses, records = zip(*[compile_run(run, workdir) for run in runs])
    print("\n".join([header(COLUMNS), *rows(records), "", header(WHOLE), *whole_rows(records)]))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
