"""The README's table of what fits and how fast it could be: compiles the runs of some config files and prints a row per program.

    python -m dat_jax.compilation.table --workdir=runs/compile configs/llama3_tpu.py configs/gemma_tpu.py configs/qwen2_5_tpu.py

A config whose compile.json is already below the workdir is not compiled again. An hour on two cores for the three of them.
"""

import argparse
import json
import os
import runpy
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from etils import epath

from dat_jax import compilation
from dat_jax.compilation import report

COLUMNS = ("model", "program", "slice", "mesh", "HBM per chip", "received per chip", "FLOPs / needed", "at least", "MFU at most")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def rows(records: list[dict]) -> list[str]:
    """The table's rows from the contents of compile.json files."""
    lines = []
    for about in records:
        for program in about["programs"]:
            model = about["sampler"] if program["program"] == "sampler" else about["target"]
            lines.append(report.row(model.split("/")[-1], about["topology"], about["mesh"], program))
    return lines


def main(arguments: list[str]) -> int:
    """Compiles what is missing, prints the table and returns 1 when something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--workdir", default="runs/compile")
    options = parser.parse_args(arguments)
    records, status = [], 0
    for path in options.configs:
        folder = epath.Path(options.workdir) / epath.Path(path).stem
        if not (folder / "compile.json").exists():
            status |= compilation.run(runpy.run_path(path)["get_config"](), str(folder))
        records.append(json.loads((folder / "compile.json").read_text()))
    print("\n".join([HEADER, *rows(records)]))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
