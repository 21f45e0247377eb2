"""A bucket that fails on cue: with 429, with 503, and by a connection that is cut. It is tried again, a bounded number of times."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dat_jax.checkpoints import Checkpoints, TrainState
from dat_jax.data import files
from dat_jax.stations import lock

TRIES = 6  # gcsfs's own
CUES = (429, 503, "cut")


@pytest.fixture
def cues(bucket, monkeypatch):
    """What the next requests for objects end with; those that came are noted beside it."""
    import gcsfs.retry
    from gcp_storage_emulator import server

    found = types.SimpleNamespace(next=[], requests=[])
    handle = server.Router.handle

    def on_cue(router, method):
        path = router._request_handler.path
        if "/o" not in path or method not in ("GET", "POST", "DELETE") or (method == "GET" and "alt=media" not in path):
            return handle(router, method)  # whether an object is there, and what a folder lists
        cue = found.next.pop(0) if found.next else None
        found.requests.append((method, cue))
        if cue is None:
            return handle(router, method)
        handler = router._request_handler
        size = int(handler.headers.get("Content-Length") or 0)
        if cue == "cut":
            handler.rfile.read(size // 2)  # half of the upload has come
            handler.close_connection = True
            return None
        handler.rfile.read(size)
        handler.send_response(cue)
        handler.send_header("Content-Length", "0")
        return handler.end_headers()

    async def at_once(seconds):
        """Waits for nothing: the real pauses are up to 32 seconds."""

    monkeypatch.setattr(server.Router, "handle", on_cue)
    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=at_once))
    return found


@pytest.mark.parametrize("cue", CUES)
def test_a_file_is_written_and_read_after_some_failures(cues, cue):
    text = "x" * 100_000
    cues.next = [cue] * (TRIES - 1)
    files.write_text(f"gs://bucket/faults/{cue}.txt", text)
    found = [found for method, found in cues.requests if method == "POST"]
    assert not cues.next and found.count(cue) == TRIES - 1 and found[-1] is None and len(found) <= 2 * TRIES
    cues.next = [cue, cue]
    assert files.read_text(f"gs://bucket/faults/{cue}.txt") == text and not cues.next


@pytest.mark.parametrize("cue", CUES)
def test_a_bucket_that_fails_for_good_is_one_error_and_loses_nothing(cues, cue):
    path = f"gs://bucket/faults/{cue}_for_good.txt"
    files.write_text(path, "before")
    cues.requests.clear()
    cues.next = [cue] * 100
    with pytest.raises(OSError, match=rf"^{path}: the bucket still fails after several tries: .") as caught:
        files.write_text(path, "after")
    assert len(cues.requests) <= 2 * TRIES and "\n" not in str(caught.value)
    cues.next = [cue] * 100
    with pytest.raises(OSError, match=rf"^{path}: the bucket still fails after several tries: ."):
        files.read_text(path)
    cues.next = []
    assert files.read_text(path) == "before"


@pytest.mark.parametrize("cue", CUES)
def test_a_lock_in_a_bucket_that_fails_is_held_once(cues, cue):
    folder = epath.Path(f"gs://bucket/faults/locked_{cue}")
    cues.next = [cue, cue]
    with lock.held(folder):
        cues.next = [cue]
        with pytest.raises(ValueError, match="is in use by process"), lock.held(folder):
            pytest.fail("two owners")
    cues.next = [cue] * 100
    with pytest.raises(OSError, match="the bucket still fails after several tries"), lock.held(folder):
        pytest.fail("held")
    cues.next = []
    with lock.held(folder):
        assert (folder / "lock.json").exists()


def test_a_checkpoint_is_whole_after_failures(cues):
    """tensorstore tries again by itself, first after a second."""
    state = TrainState(step=jnp.ones((), jnp.int32), trainable={"w": jnp.arange(3.0)}, optimizer={"m": jnp.ones(3)})
    cues.next = [503, 429]
    with Checkpoints("gs://bucket/faults/checkpoints", 1, 1) as checkpoints:
        checkpoints.save(state, {"method": "cat"})
        checkpoints.wait()
    assert not cues.next
    with Checkpoints("gs://bucket/faults/checkpoints", 1, 1) as checkpoints:
        found = checkpoints.restore(state, {"method": "cat"})
    np.testing.assert_array_equal(found.trainable["w"], np.arange(3.0))
