"""A whole job that is killed at random moments, over all of its stations, ends as one that was left alone; the long one is a benchmark."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_job_that_was_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """DAT_JAX_KILLS: how many kills; 100 of them take minutes."""
    count = os.environ.get("DAT_JAX_KILLS", "3")
    command = [sys.executable, "benchmarks/kills.py", f"--kills={count}", "--seed=1", f"--folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{count} kills in ") and done.stdout.rstrip().endswith("; 0 differences")
