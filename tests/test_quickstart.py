"""The README's first command at a tiny size, as a process of its own; killed half way, it goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

WORLD = {"width": 32, "layers": 2, "mlp_width": 64, "batch": 8, "steps": 2}
SMALL = {
    **{f"world.{model}.{key}": value for model in ("target", "sampler") for key, value in WORLD.items()},
    "world.target.tuning_steps": 2,
    "data.adversarial_rows": 4,
    "data.utility_rows": 8,
    "sampler.samples": 4,
    "sampler.keep": 2,
    "sampler.batch_size": 8,
    "sampler.likelihood_samples": 2,
    "utility.answers": 8,
    "utility.samples": 1,
    "utility.keep": "all",  # models of two steps agree on nothing
    "sampler.consistency": 0.0,
    "training.steps": 6,
    "training.save_every": 2,
    "training.watch_every": 3,
    "training.watch_prompts": 8,
    "methods.cat.perturbation.steps": 1,
    "attacks.embedding.perturbation.steps": 1,
    "attacks.best_of_n.attempts": 2,
    "evaluation.forms": "('past','german')",
    "evaluation.utility_prompts": 16,
    "evaluation.behaviors": 8,
    "evaluation.batch_size": 8,
}


def start(workdir):
    command = [sys.executable, "-m", "dat_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in SMALL.items()]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_quickstart_killed_and_called_again(tmp_path):
    first = start(tmp_path)
    checkpoints, deadline = tmp_path / "seed_0" / "cat" / "checkpoints", time.monotonic() + 600
    while not (checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start(tmp_path)
    _, log = second.communicate(timeout=900)
    assert second.returncode == 0, log
    assert "world, seed 0: done" in log and "cat: goes on after step" in log and "left" in log
    results = json.loads((tmp_path / "results.json").read_text())
    for method in ("undefended", "cat", "dat"):
        attacks = {row["attack"] for row in results["rows"] if row["method"] == method}
        assert {"direct", "rewrite:past", "best_of_n", "prefill", "embedding", "embedding+rewrite:german", "worst_case"} <= attacks
    assert {"method", "attack", "seed", "behaviors", "broken", "rate", "low", "high"} == set(results["rows"][0])
    assert any("grammatical" in note for note in results["notes"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 3 and 'src="' not in page and "<link" not in page  # self-contained
    lines = (tmp_path / "seed_0" / "cat" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss/total" in line]
    assert steps == [1, 2, 3, 4, 5, 6]

    third = start(tmp_path)
    _, log = third.communicate(timeout=300)
    assert third.returncode == 0 and "train, seed 0: done" in log
    for method in ("undefended", "cat", "dat"):
        assert f"evaluate {method}, seed 0: done" in log and f"judge world, {method}, seed 0: 0 of " in log
