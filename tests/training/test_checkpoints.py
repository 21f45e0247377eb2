"""Checkpoints whose files are not those that were written: named, and the last whole step used; none whole is an error, never a restart."""

import logging
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import checkpoints as checkpoints_lib
from dat_jax.checkpoints import CHECKSUMS, Checkpoints, TrainState, load_trainable
from dat_jax.data import manifest

ABOUT = {"method": "cat", "model": "m", "weights": "w"}


def state(step, value=None):
    value = float(step if value is None else value)
    return TrainState(
        step=jnp.asarray(step, jnp.int32), trainable={"w": jnp.full((64, 8), value)}, optimizer={"m": jnp.full((64, 8), value)}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    with Checkpoints(folder, 1, 3) as saved:
        for step in (1, 2, 3):
            saved.save(state(step), ABOUT)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def restored(folder, about=ABOUT, keep=3):
    with Checkpoints(folder, 1, keep) as saved:
        return saved.restore(state(0), about)


def files(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file() and path.name != CHECKSUMS)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_every_file_of_a_step_has_its_checksum(folder):
    for step in (1, 2, 3):
        entries = manifest.check(folder / str(step) / CHECKSUMS).entries
        assert {folder / str(step) / name for name in entries} == set(files(folder, step))
    found = restored(folder)
    assert int(found.step) == 3 and float(found.trainable["w"][0, 0]) == 3.0
    assert float(load_trainable(folder, {"w": jnp.zeros((64, 8))})["w"][0, 0]) == 3.0


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "no checksums", "damaged checksums"])
def test_the_last_whole_step_is_used_and_the_damaged_file_named(folder, how, caplog):
    """Each in turn: every file of the newest step."""
    for number, path in enumerate(files(folder, 3) if "checksums" not in how else [folder / "3" / CHECKSUMS]):
        copy = folder.parent / str(number)
        shutil.copytree(folder, copy)
        victim = copy / path.relative_to(folder)
        if how in ("gone", "no checksums"):
            victim.unlink()
        elif how == "cut":
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
        else:
            flip(victim)
        if how == "cut" and path.stat().st_size == 0:
            continue
        caplog.clear()
        assert checkpoints_lib.read(copy).step == 2
        assert float(load_trainable(copy, {"w": jnp.zeros((64, 8))})["w"][0, 0]) == 2.0
        assert (str(victim) if how != "no checksums" else f"3 has no {CHECKSUMS}") in caplog.text
        assert "step 2, the last whole one, is used" in caplog.text


def test_a_run_that_goes_on_comes_to_the_damaged_step_again(folder, caplog):
    flip(max(files(folder, 3), key=lambda path: path.stat().st_size))
    with Checkpoints(folder, 1, 2) as saved:
        assert int(saved.restore(state(0), ABOUT).step) == 2
        saved.save(state(3, 30), ABOUT)
        saved.save(state(4), ABOUT)
    assert "step 2, the last whole one, is used" in caplog.text
    caplog.clear()
    with Checkpoints(folder, 1, 2) as saved:
        assert int(saved.restore(state(0), ABOUT).step) == 4
    shutil.rmtree(folder / "4")
    assert float(restored(folder).trainable["w"][0, 0]) == 30.0 and not caplog.records


def test_none_whole_is_an_error_and_no_restart(folder):
    for step in (1, 2, 3):
        flip(max(files(folder, step), key=lambda path: path.stat().st_size))
    for read in (restored, checkpoints_lib.read, lambda folder: load_trainable(folder, {"w": jnp.zeros((64, 8))})):
        with pytest.raises(ValueError, match=r"no checkpoint is whole, of 1, 2, 3: .*checkpoints/3/.* was cut, damaged or edited"):
            read(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["1", "2", "3"]


def test_what_an_earlier_version_wrote_is_used_and_said(folder, caplog):
    for step in (1, 2, 3):
        (folder / str(step) / CHECKSUMS).unlink()
    assert int(restored(folder, ABOUT | {"model": "m"}).step) == 3
    assert "an earlier version wrote it: step 3 is used unchecked" in caplog.text
    for path in files(folder, 3):  # there Orbax alone can notice
        if "trainable" in str(path):
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoints/3 can not be read: "):
        restored(folder)


def test_a_model_is_known_by_its_weights_wherever_it_lies(folder):
    assert int(restored(folder, ABOUT | {"model": "renamed"}).step) == 3
    with pytest.raises(ValueError, match="the checkpoint of step 3 was made with weights = 'w', now it is 'v'; use a new folder"):
        restored(folder, ABOUT | {"weights": "v"})
    old = {"method": "cat", "model": "/some/where/m"}  # as the version before wrote it
    checkpoints_lib.same_run("it", old, ABOUT)
    with pytest.raises(ValueError, match="it was made with model = 'm', now it is 'n'"):
        checkpoints_lib.same_run("it", old, ABOUT | {"model": "n"})


def test_checksums_follow_a_save_by_themselves(tmp_path, caplog):
    """Not only before the next save: a kill between two saves, the usual one, costs nothing."""
    caplog.set_level(logging.INFO)
    with Checkpoints(tmp_path / "c", 1, 1) as saved:
        saved.save(state(1), ABOUT)
        deadline = time.monotonic() + 60
        while not (tmp_path / "c" / "1" / CHECKSUMS).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        manifest.check(tmp_path / "c" / "1" / CHECKSUMS)
    np.testing.assert_array_equal(np.asarray(restored(tmp_path / "c").optimizer["m"]), 1.0)


def test_the_precision_of_the_base_is_the_runs(folder):
    """A checkpoint of a version that did not record it goes on; one that did does not on another base."""
    assert restored(folder, ABOUT | {"base_dtype": "nf4"}).step == 3
    checkpoints_lib.same_run("c", ABOUT | {"base_dtype": "nf4"}, ABOUT | {"base_dtype": "nf4"})
    with pytest.raises(ValueError, match="c was made with base_dtype = 'nf4', now it is 'float32'; use a new folder"):
        checkpoints_lib.same_run("c", ABOUT | {"base_dtype": "nf4"}, ABOUT | {"base_dtype": "float32"})
