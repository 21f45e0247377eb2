"""Kills of a whole tiny job, whose end must be that of a run without any.

    python benchmarks/kills.py [--kills=100] [--seed=0] [--folder=DIR]

The job samples, trains two methods, attacks, judges and reports, with the files of tests/stations/tiny_job.py. One run is left alone.
Others get SIGKILL, half of the times after a random time, half of the times at a random write of a file (before it, or half way). Each goes
on until it is killed again, and ends by itself after six kills. Then prompts, checkpoints, metrics, answers, verdicts and results are
compared with those of the run that was left alone: bit for bit, but for times and what follows from them. New runs are begun until there
were so many kills. A run is a fork of this process, which has imported everything and started no device, so that a start takes no seconds.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import logging
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")  # compiles in a seventh

import jax
import numpy as np

from dat_jax import checkpoints, stations
from dat_jax.data import files

ROOT = pathlib.Path(__file__).parents[1]
# Parts of keys that may differ: times, and a model's identity, which is the checksum of a file with times in it.
TIMES = ("seconds", "per_second", "resumed_at", "wall", "time", "started", "mfu", "peak", "memory", "model")
PER_RUN = 6  # kills of a run, after which it is left alone


def job() -> Any:
    """The module of the tiny job."""
    spec = importlib.util.spec_from_file_location("tiny_job", ROOT / "tests" / "stations" / "tiny_job.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def forked(call: Any) -> int:
    """Calls in a process of its own and returns its id; 0 is its status where the call returns 0."""
    if pid := os.fork():
        return pid
    try:
        status = call()
    except BaseException:
        logging.exception("the job ended with an error")
        status = 1
    os._exit(status)


def run(brought: pathlib.Path, workdir: pathlib.Path, at_write: int = 0, half: bool = False) -> int:
    """The whole job; at its so-many-th write of a file it kills itself, before it or half way."""
    if at_write:
        write, count = files.write_bytes, iter(range(1, 1 << 30))

        def deadly(path: Any, data: bytes) -> None:
            if next(count) == at_write:
                if half:
                    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
                    (pathlib.Path(path).parent / (pathlib.Path(path).name + ".partial")).write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)

        files.write_bytes = deadly
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    cache = workdir / "compilation_cache"
    if not cache.is_symlink():  # one for all runs: compiling is most of the time, and no result
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir.parent / "cache").mkdir(exist_ok=True)
        cache.symlink_to(workdir.parent / "cache")
    config = job().get_config(str(brought))
    config.training.methods = ("cat", "dat")
    config.training.update({"steps": 6, "save_every": 2, "watch_every": 3, "watch_prompts": 2})
    config.evaluation.attacks = ("direct", "best_of_n", "embedding")
    return stations.run("all", config, str(workdir))


def timeless(value: Any) -> Any:
    """A JSON value without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key != "manifest" and not any(word in key for word in TIMES)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def content(workdir: pathlib.Path) -> dict[str, Any]:
    """What a finished run made: relative name -> text, JSON without times, or arrays."""
    found: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if not path.is_file() or name.startswith("compilation_cache") or "/checkpoints/" in name or "/events/" in name:
            continue
        if path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif not name.startswith("report."):  # they show times
            found[name] = path.read_bytes()
    return found


def arrays(workdir: pathlib.Path) -> dict[str, Any]:
    """The arrays of all checkpoints; in a process of its own, since it starts a device."""
    from orbax.checkpoint import v1 as ocp

    found = {}
    for folder in sorted(workdir.glob("seed_*/*/checkpoints")):
        newest = checkpoints.read(folder)
        items = ocp.load_checkpointables(newest.folder, {"trainable": None, "optimizer": None})
        for path, leaf in jax.tree_util.tree_leaves_with_path(items):
            found[f"{folder.parent.name} {newest.step} {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


def differences(one: pathlib.Path, two: pathlib.Path) -> list[str]:
    """Names of what two finished runs do not have in common."""
    first, second = content(one), content(two)
    return sorted(name for name in first.keys() | second.keys() if name not in first or name not in second or first[name] != second[name])


def equal_arrays(one: pathlib.Path, two: pathlib.Path) -> int:
    """0 where all checkpoints hold the same bits."""
    first, second = arrays(one), arrays(two)
    same = first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)
    if not same or not first:
        print("checkpoints differ:", sorted(first.keys() ^ second.keys())[:5], flush=True)
    return 0 if same and first else 1


def ended(pid: int) -> int:
    """The status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def station(workdir: pathlib.Path) -> str:
    """How far a killed run had come."""
    seed = workdir / "seed_0"
    marks = {"report": workdir / "results.json", "judge": seed / "verdicts", "evaluate": seed / "answers", "train dat": seed / "dat",
             "train cat": seed / "cat", "sample": seed / "prompts"}  # fmt: skip
    return next((name for name, path in marks.items() if path.exists()), "start")


def main() -> int:
    """Prints a line per run that was killed, and what differed; the status is 0 where nothing did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or pathlib.Path(temporary)
        draw, brought, whole = random.Random(given.seed), folder / "brought", folder / "whole"
        started = time.monotonic()
        made = (whole / "results.json").exists()  # by an earlier call with --folder
        if not made and (ended(forked(lambda: job().bring(str(brought)) or 0)) or ended(forked(lambda: run(brought, whole)))):
            return 1
        # span: seconds within which a kill comes
        span, kills, number, wrong = max(10.0, (time.monotonic() - started) / 3), 0, len(list(folder.glob("run_*"))), []
        writes, where = 120, collections.Counter()
        while kills < given.kills:
            number += 1
            workdir, mine = folder / f"run_{number}", 0
            while True:
                left = mine < PER_RUN and kills < given.kills
                by_write = left and draw.random() < 0.5
                at_write, half = (draw.randint(1, writes // 3), draw.random() < 0.5) if by_write else (0, False)
                pid = forked(lambda at_write=at_write, half=half: run(brought, workdir, at_write, half))  # noqa: B023
                if left and not by_write:
                    time.sleep(draw.uniform(0.0, span))
                    os.kill(pid, signal.SIGKILL)
                begun = time.monotonic()
                if (status := ended(pid)) == -signal.SIGKILL:
                    kills, mine = kills + 1, mine + 1
                    where[station(workdir)] += 1
                    continue
                if status:
                    return status
                span = span if left else min(span, time.monotonic() - begun)  # what was compiled takes no time any more
                break
            found = differences(whole, workdir)
            same = ended(forked(lambda: equal_arrays(whole, workdir))) == 0  # noqa: B023
            wrong += found + ([] if same else ["checkpoints"])
            print(f"run {number}: {mine} kills, {'equal' if not found and same else f'DIFFERENT: {found}'}", flush=True)
        counts = ", ".join(f"{name} {count}" for name, count in where.most_common())
        print(f"{kills} kills in {number} runs; the furthest that they had come: {counts}; {len(wrong)} differences", flush=True)
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
