"""One owner of a work directory: a second call is refused, and the lock of an owner that is gone is broken."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from dat_jax import stations
from dat_jax.stations import lock

HOLDS = """
import sys, time
from etils import epath
from dat_jax.stations import lock
with lock.held(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def holder(folder):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def written(folder, **changes):
    """Leaves the lock of an owner like this process, with other fields."""
    folder.mkdir(exist_ok=True)
    owner = dataclasses.replace(lock.myself(), token="other", **changes)
    (folder / lock.NAME).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_who_comes_second_is_told_the_owner_and_the_first_goes_on(tmp_path):
    folder = epath.Path(tmp_path / "run")
    with lock.held(folder):
        owner = json.loads((folder / lock.NAME).read_text())
        assert owner["pid"] == os.getpid() and owner["host"] and owner["since"].endswith("Z")
        with pytest.raises(ValueError) as caught, lock.held(folder):
            pytest.fail("two owners")
        assert str(caught.value).startswith(f"{folder} is in use by process {os.getpid()} on {owner['host']}, which has it since 2")
        assert json.loads((folder / lock.NAME).read_text()) == owner
    assert not folder.exists()  # nothing else was written


def test_a_station_needs_the_workdir_for_itself_and_the_report_does_not(config, tmp_path):
    with lock.held(epath.Path(tmp_path)):
        with pytest.raises(ValueError, match="is in use by process"):
            stations.run("evaluate", config, str(tmp_path))
        assert stations.run("report", config, str(tmp_path)) == 0  # of a run that goes on, whatever it has so far
        assert "No attack is judged yet" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="nothing was evaluated there"):
        stations.run("report", config, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"report.html", "report.md", "results.json"}


def test_the_lock_of_a_killed_process_is_broken_with_one_line(tmp_path, caplog):
    process = holder(tmp_path)
    try:
        with pytest.raises(ValueError, match=rf"is in use by process {process.pid} on "), lock.held(epath.Path(tmp_path)):
            pytest.fail("two owners")
        process.send_signal(signal.SIGKILL)  # not waited for: what is left of it has its number still
        time.sleep(0.2)
        with lock.held(epath.Path(tmp_path)):
            assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()
    assert [m for m in caplog.messages if f"the lock of process {process.pid} on " in m and "is broken: its owner is gone" in m]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, OSError])
def test_it_is_released_whatever_ends_the_run(tmp_path, error):
    (tmp_path / "result").touch()
    with pytest.raises(error), lock.held(epath.Path(tmp_path)):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_number_that_is_another_programs_now_is_no_owner(tmp_path):
    written(tmp_path, started="1")
    with lock.held(epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize("text", ["", " " * 9])
def test_a_lock_that_was_never_written_is_broken(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize("text", ["{}", "[]", '{"host": "a"', "null"])
def test_a_file_that_is_no_lock_is_not_removed(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with pytest.raises(ValueError, match=r"lock\.json in the work directory is no lock of this version"), lock.held(epath.Path(tmp_path)):
        pytest.fail("a lock that nobody understands was broken")
    assert (tmp_path / lock.NAME).read_text() == text


def test_another_machines_owner_lives_while_it_renews(tmp_path, monkeypatch):
    fresh = written(tmp_path, host="far", machine="other", pid=7)
    with pytest.raises(ValueError, match="is in use by process 7 on far"), lock.held(epath.Path(tmp_path)):
        pytest.fail("two owners")
    written(tmp_path, host="far", machine="other", pid=7, beat=fresh.beat - lock.SILENT - 1)
    with lock.held(epath.Path(tmp_path)):
        pass
    monkeypatch.setattr(lock, "LATE", 1.0)
    monkeypatch.setattr(lock, "SILENT", 3.0)
    written(tmp_path, host="far", machine="other", pid=7, beat=time.time() - 1.5)
    started = time.monotonic()
    with lock.held(epath.Path(tmp_path)):  # it is waited for, and gives no sign
        assert time.monotonic() - started > 1.0
    written(tmp_path, host="far", machine="other", pid=7, beat=time.time() - 1.5)
    threading.Timer(0.5, written, (tmp_path,), {"host": "far", "machine": "other", "pid": 7}).start()
    with pytest.raises(ValueError, match="is in use by process 7 on far"), lock.held(epath.Path(tmp_path)):
        pytest.fail("two owners")


def test_the_owner_renews_and_ends_when_its_lock_is_taken(tmp_path, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock.os, "kill", lambda pid, number: told.set() if number == signal.SIGTERM else None)
    with lock.held(epath.Path(tmp_path)):
        first = json.loads((tmp_path / lock.NAME).read_text())
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / lock.NAME).read_text())["beat"] == first["beat"] and time.monotonic() < deadline:
            time.sleep(0.01)
        now = json.loads((tmp_path / lock.NAME).read_text())
        assert now.pop("beat") > first.pop("beat") and now == first and not told.is_set()
        other = lock._text(dataclasses.replace(lock.myself(), token="other")).encode().ljust(lock.SIZE)
        with (tmp_path / lock.NAME).open("r+b") as file:
            file.write(other)
        assert told.wait(10)
    assert (tmp_path / lock.NAME).read_bytes() == other  # what is another's stays


def test_of_many_that_break_one_lock_one_has_it(tmp_path):
    """Threads are as good as processes here: the kernel's locks belong to open files."""
    written(tmp_path, started="1")
    start, places, refused = threading.Barrier(16), [], []

    def call():
        owner, place = lock.myself(), lock._place(epath.Path(tmp_path))
        start.wait()
        try:
            lock.take(place, owner, epath.Path(tmp_path))
            places.append(place)
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 1 and len(refused) == 15


def test_a_scheme_without_conditional_writes_is_refused():
    with pytest.raises(ValueError, match=r"--workdir=s3://b/run; allowed: a folder, or gs://BUCKET/FOLDER"):
        lock._Bucket("s3://b/run/lock.json")
