"""A signal ends every command with one line and status 75, and the same command ends as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from dat_jax import signals, stations
from dat_jax.data import files
from dat_jax.training import loop


@pytest.fixture
def listening():
    """Signals as in a command; pytest's own handlers are put back."""
    before, hook = {number: signal.getsignal(number) for number in signals.BOTH}, sys.unraisablehook
    signals.listen()
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_in_a_callback_of_the_garbage_collector_ends_the_program():
    """Python drops what such a callback raises: the program would say that it stops, and go on."""
    lines = ["import gc, os, signal, time", "from dat_jax import signals", "signals.listen()", "sent = []"]
    lines += ["gc.callbacks.append(lambda phase, info: sent or (sent.append(1), os.kill(os.getpid(), signal.SIGTERM)))"]
    lines += ["gc.collect()", "print('went on')"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (signals.PREEMPTED, "")
    assert done.stderr == "dat_jax: SIGTERM; the same command goes on from what is saved\n"


def everything(folder):
    """The results below a folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.jsonl"))}


def stop_after(writes, name, number, monkeypatch, module, function):
    """Sends a signal after so many calls of a function of a module for a file whose name holds `name`."""
    original, seen = getattr(module, function), []

    def wrapped(path, *rest):
        original(path, *rest)
        if name in str(path):
            seen.append(path)
            if len(seen) == writes:
                os.kill(os.getpid(), number)
                time.sleep(60)

    monkeypatch.setattr(module, function, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name", "number"),
    [
        ("sample", "prompts/samples/", signal.SIGTERM),
        ("evaluate", "answers/target/best_of_n.jsonl", signal.SIGINT),
        ("judge", "verdicts/refusal_prefix/target/direct.jsonl", signal.SIGTERM),
        ("report", "report.md", signal.SIGINT),
    ],
)
def test_a_station_that_is_stopped_goes_on_and_ends_the_same(config, tmp_path, monkeypatch, capfd, listening, mode, name, number):
    if mode != "sample":
        config.training.methods, config.evaluation.attacks, config.evaluation.batch_size = (), ("direct", "best_of_n"), 2
    else:
        config.training.methods = ("dat",)
    before = {"sample": "", "evaluate": "", "judge": "evaluate", "report": "evaluate,judge"}[mode]
    if before:
        assert stations.run(before, config, str(tmp_path / "whole")) == 0
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    assert stations.run(mode, config, str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch, pytest.raises(signals.Stopped) as caught:
        stop_after(1, name, number, patch, files, "write_bytes")
        stations.run(mode, config, str(tmp_path / "cut"))
    assert caught.value.code == 75 and not (tmp_path / "cut" / "lock.json").exists()
    told = f"dat_jax: {signal.Signals(number).name}; the same command goes on from what is saved"
    assert capfd.readouterr().err.count(told) == 1
    signals.listen()
    assert stations.run(mode, config, str(tmp_path / "cut")) == 0
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


def test_a_training_notes_both_signals_and_the_second_does_not_wait(listening):
    with signals.noted() as note:
        os.kill(os.getpid(), signal.SIGINT)
        assert note.name == "SIGINT" == loop.told_to_stop(3, note)
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    assert signal.getsignal(signal.SIGINT) is signals._stop


def test_what_takes_long_is_stopped_at_once(listening):
    with signals.noted() as note:
        with pytest.raises(signals.Stopped), note.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)
        assert note.name == "SIGTERM"
        with pytest.raises(signals.Stopped), note.at_once():  # it came before
            pytest.fail("the work was begun")


def test_where_nobody_listens_control_c_is_pythons(monkeypatch):
    with signals.noted() as note, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert note.name == ""
    found = []

    def elsewhere():
        with signals.noted() as note:
            found.append(note.name)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [""]


COMMANDS = {
    "dat_jax.main": ["--config=configs/quickstart.py"],
    "dat_jax.diffusion.pretrain": ["--chats=c", "--output=o"],
    "dat_jax.diffusion.adapt": ["--model=m", "--pairs=p", "--output=o"],
    "dat_jax.stations.validate": ["--judges=refusal_prefix", "--labels=l"],
    "dat_jax.stations.own_answers": ["--model=m", "--prompts=p", "--output=o"],
    "dat_jax.data.prepare": ["--output=o", "c.jsonl"],
}
SLEEPS = """
import os, runpy, signal, sys, threading, time
from absl import app
run = app.run
def told(main, **more):
    def slow(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    run(type(main)(main.__code__, main.__globals__, closure=tuple(type(c)(slow) for c in main.__closure__)), **more)
app.run = told
sys.argv = [sys.argv[1], *sys.argv[2:]]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_listens(module, tmp_path):
    """Its own `main` replaced by one that is told to stop: what is proven is the way around it."""
    command = [sys.executable, "-c", SLEEPS, module, *COMMANDS[module]]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=300)
    assert done.returncode == 75, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "dat_jax: SIGTERM; the same command goes on from what is saved"
    assert "Traceback" not in done.stderr


def test_a_dataset_that_was_not_finished_is_made_again(tmp_path, monkeypatch):
    from dat_jax.data import chats, prepare

    rows = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(3)]

    def stop(self):
        yield 0, {"messages": json.dumps(rows[0])}
        raise signals.Stopped(75)

    with monkeypatch.context() as patch, pytest.raises(signals.Stopped):
        patch.setattr(prepare.Chats, "_generate_examples", stop)
        prepare.write(rows, str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
    prepare.write(rows, str(tmp_path / "made"))
    assert chats.load_chats(str(tmp_path / "made")) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
