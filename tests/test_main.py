"""The command line as a user meets it: one clear line and status 2, before jax compiles anything."""

import os
import re
import subprocess
import sys

import pytest

from dat_jax import stations

QUICK = "--config=configs/quickstart.py"
LOGGED = re.compile(r"\d\d:\d\d:\d\d  ")


def call(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dat_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/quickstrat.py"], "--config=configs/quickstrat.py: no such file; did you mean configs/quickstart.py?"),
        (
            [QUICK, "--config.methods.cat.perturbation.step=20"],
            "--config.methods.cat.perturbation.step: no such key; did you mean --config.methods.cat.perturbation.steps?",
        ),
        (
            [QUICK, "--config.atacks.prefill.words=2"],
            "--config.atacks.prefill.words: no such key; did you mean --config.attacks.prefill.words?",
        ),
        (
            [QUICK, "--workdir=w", "--config.methods.cat.perturbation.radius=-1"],
            "config.methods.cat.perturbation.radius is -1.0; allowed: a number >= 0",
        ),
        (
            [QUICK, "--workdir=w", "--mode=evaluate,jduge"],
            "--mode=evaluate,jduge; allowed: all, sample, train, evaluate, judge, export, report",
        ),
        ([QUICK, "--config.evaluation.judges=world,oracle"], "config.evaluation.judges is ('world', 'oracle'); allowed: a selection of "),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    done = call(*arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.strip().splitlines() if not LOGGED.match(line)]
    assert len(lines) == 1 and lines[0].startswith(f"dat_jax: {message}")
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_what_the_disk_refuses_is_one_line(tmp_path):
    """Status 1, not 2: there is nothing to mend in the call, and launch/supervise.sh tries again."""
    (tmp_path / "file").touch()
    done = call(QUICK, f"--workdir={tmp_path}/file")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(f"dat_jax: {tmp_path}/file/lock.json: Not a directory; when that is mended, the same command goes on")
    )


def test_a_call_without_its_files_says_what_to_bring_and_names_the_workdir_first(tmp_path):
    """The paper's configuration on a machine that has none of it; no workdir is given, and none is made."""
    for name in ("configs", "dat_jax"):
        (tmp_path / name).symlink_to(os.path.abspath(name))
    command = [sys.executable, "-m", "dat_jax.main", "--config=configs/gemma_tpu.py"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    first, *lines = done.stderr.strip().splitlines()
    assert LOGGED.match(first) and first.endswith("workdir: runs/gemma_tpu")
    assert lines[0] == "dat_jax: 7 files are not there; bring what is missing, or set its key to where it is:"
    keys = [line.split("(config.data.")[1].split(")")[0] for line in lines[1:]]
    assert keys == ["behaviors", "targets", "safe_responses", "chats", "eval_behaviors", "eval_targets", "borderline"]
    assert "  data/ultrachat  (config.data.chats): " in lines[4] and "python -m dat_jax.data.prepare" in lines[4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "dat_jax"]


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("all", ("sample", "train", "evaluate", "judge", "report")),
        ("train", ("train",)),
        ("evaluate, judge,report", ("evaluate", "judge", "report")),
        ("compile", ("compile",)),
        *((wrong, None) for wrong in ("", "all,train", "compile,train", "evaluate,", "Train")),
    ],
)
def test_a_mode_is_all_a_station_or_several(mode, names):
    if names:
        assert stations.parse(mode) == names
    else:
        with pytest.raises(ValueError, match=f"--mode={mode}; allowed: all, .*, compile, or stations with commas between"):
            stations.parse(mode)


STOPPED = """
import os, pathlib, runpy, signal, sys, time
from etils import epath
from dat_jax import signals, stations
from dat_jax.stations import lock
def stopped(mode, config, workdir):
    with lock.held(epath.Path(workdir)):
        pathlib.Path(workdir, "result").touch()
        try:
            os.kill(os.getpid(), signal.Signals[os.environ["TOLD_BY"]])
            time.sleep(60)
        except Exception:  # as code that goes on after every error of its own
            pass
stations.run = stopped
runpy.run_module("dat_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_who_tells_a_run_to_stop_is_told_that_it_goes_on(tmp_path, name):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TOLD_BY": name}
    command = [sys.executable, "-c", STOPPED, QUICK, f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 75  # which launch/supervise.sh answers with the same command
    lines = [line for line in done.stderr.strip().splitlines() if not LOGGED.match(line)]
    assert lines == [f"dat_jax: {name}; the same command goes on from what is saved"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]  # the lock is gone
