"""What an evaluation holds of the host's memory at 100 and at 1,000 behaviors: a tiny model under four attacks, a process for each number.

    python benchmarks/evaluation_memory.py
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
ATTACKS = ("direct", "best_of_n", "prefill", "embedding")


def evaluate(behaviors: int) -> None:
    """Evaluates so many behaviors and prints the most that the process held, and how long its answers' files are, in MiB."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("tiny_job", ROOT / "tests" / "stations" / "tiny_job.py")
    tiny_job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_job)

    from dat_jax import stations

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tiny_job.bring(folder)
        rows = "".join(f"Paint the kite number {n},kite_{n}\n" for n in range(behaviors))
        (folder / "eval.csv").write_text("Behavior,BehaviorID\n" + rows)
        config = tiny_job.get_config(folder)
        config.sampler.model = config.data.eval_targets = ""
        config.training.methods, config.evaluation.attacks, config.evaluation.batch_size = ("undefended",), ATTACKS, 32
        config.attacks.best_of_n.attempts = 8
        stations.run("evaluate", config, str(folder / "run"))
        most = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
        written = sum(path.stat().st_size for path in (folder / "run" / "seed_0" / "answers").rglob("*.json*")) / 2**20
    print(json.dumps({"behaviors": behaviors, "most MiB": round(most), "answers MiB": round(written, 1)}))


def main() -> None:
    """Runs each number in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behaviors", type=int, default=0)
    flags = parser.parse_args()
    if flags.behaviors:
        evaluate(flags.behaviors)
    for number in () if flags.behaviors else (100, 1000):
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"} | dict(os.environ)
        done = subprocess.run([sys.executable, __file__, f"--behaviors={number}"], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
