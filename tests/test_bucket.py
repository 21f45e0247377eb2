"""A run whose models, data and workdir lie in a bucket: killed, resumed by two processes, recognised as done, exported.

The bucket is an emulator of Google Cloud Storage in this process. It lacks two things that real buckets have and that OCDBT, the format of
the checkpoints, builds on: the header that tells an object's generation, and uploads that are conditional on it. The lock of a workdir
needs deletions that are conditional, too. They are added here.
It knows no hierarchical buckets either, which gcsfs would ask for over gRPC, so it is told not to.
"""

import dataclasses
import json
import signal
import time
from http import HTTPStatus

import jax.numpy as jnp
import pytest
from etils import epath

from dat_jax import models
from dat_jax.checkpoints import Checkpoints, TrainState
from dat_jax.data import chats, files, manifest
from dat_jax.data.prepare import write as write_dataset
from dat_jax.stations import lock

CHATS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(3)]


def call(tiny_job, home, mode, processes=1):
    """Starts a mode of the tiny job in the bucket; HOME is where models are copied to."""
    small = ["--config.training.methods=('cat','dat')", "--config.training.steps=9", "--config.training.save_every=3"]
    small += ["--config.training.watch_every=0", "--config.evaluation.attacks=('direct','embedding')"]
    folders = ("gs://bucket/brought", "gs://bucket/run", mode)
    return tiny_job.start(*folders, *small, processes=processes, devices=processes, HOME=str(home), JAX_COMPILATION_CACHE_DIR="")


def content(name):
    """An object as it is now: other processes write, so what this one has listed does not count."""
    import fsspec

    fsspec.filesystem("gs").invalidate_cache()
    return epath.Path(f"gs://bucket/{name}").read_text()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_resumed_recognised_and_exported(tiny_job, bucket, tmp_path):
    tiny_job.bring("gs://bucket/brought")
    (process,) = call(tiny_job, tmp_path, "all")
    deadline = time.monotonic() + 200
    while "run/seed_0/cat/checkpoints/3/checksums.json" not in bucket and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert tiny_job.ended([process]) == [-signal.SIGKILL]
    assert "run/seed_0/cat/finished.json" not in bucket
    drawn = {name: found["generation"] for name, found in bucket.items() if name.startswith("run/seed_0/prompts/")}
    assert "run/seed_0/prompts/prompts.jsonl" in drawn

    assert tiny_job.ended(call(tiny_job, tmp_path, "all", processes=2)) == [0, 0]
    assert {name: bucket[name]["generation"] for name in drawn} == drawn
    assert json.loads(content("run/seed_0/cat/finished.json"))["resumed_at"] >= 3
    for method in ("cat", "dat"):
        lines = [json.loads(line) for line in content(f"run/seed_0/{method}/metrics.jsonl").splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 10))
        events = [name for name in bucket if name.startswith(f"run/seed_0/{method}/events/")]
        assert any(b"loss/total" in epath.Path(f"gs://bucket/{name}").read_bytes() for name in events)
    rows = json.loads(content("run/results.json"))["rows"]
    assert {(row["method"], row["attack"]) for row in rows} >= {("cat", "direct"), ("dat", "embedding"), ("dat", "worst_case")}
    assert "<svg" in content("run/report.html") and content("run/report.md")
    for name in ("answers/cat/direct.json", "answers/dat/utility/benign.jsonl", "verdicts/refusal_prefix/dat/embedding.jsonl"):
        assert f"run/seed_0/{name}" in bucket
    assert any(name.startswith("run/compilation_cache/") for name in bucket)

    before = {name: found["generation"] for name, found in bucket.items()}
    assert tiny_job.ended(call(tiny_job, tmp_path, "sample,train,evaluate,judge,export,report")) == [0]
    changed = {name for name, found in bucket.items() if found["generation"] != before.get(name)}
    changed -= {name for name in changed if name.startswith("run/seed_0/export/")}
    assert changed == {"run/config.json", "run/results.json", "run/report.md", "run/report.html"}

    back = models.load("gs://bucket/run/seed_0/export/dat", cache_dir=str(tmp_path / "cache"))
    assert back.tokenizer.chat_template == tiny_job.tokenizer().chat_template
    assert "worst_case" in content("run/seed_0/export/dat/README.md")
    assert "run/seed_0/export/cat-adapter/adapter_model.safetensors" in bucket


def test_chats_in_a_bucket_in_every_format(bucket, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": chat} for chat in CHATS]
    files.write_text("gs://bucket/chats/c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with epath.Path("gs://bucket/chats/c.parquet").open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    write_dataset(CHATS, str(tmp_path / "dataset"))
    for path in (tmp_path / "dataset").iterdir():
        epath.Path(f"gs://bucket/chats/dataset/{path.name}").write_bytes(path.read_bytes())
    for name in ("c.jsonl", "c.parquet", "dataset"):
        assert chats.load_chats(f"gs://bucket/chats/{name}") == CHATS
    with pytest.raises(ValueError, match=r"gs://bucket/chats/d\.jsonl: no such file; did you mean c\.jsonl\?"):
        chats.load_chats("gs://bucket/chats/d.jsonl")


def test_a_workdir_in_a_bucket_has_one_owner(bucket, caplog):
    """Of two that break one lock at one moment, the first changes the generation under the other."""
    folder = epath.Path("gs://bucket/locked")
    with lock.held(folder):
        owner = json.loads(content("locked/lock.json"))
        with pytest.raises(ValueError, match=rf"gs://bucket/locked is in use by process {owner['pid']} on "), lock.held(folder):
            pytest.fail("two owners")
        place = lock._place(folder)
        version, text = place.read()
        assert not place.swap("0", text) and not place.swap(str(int(version) + 1), "")  # it is there; it is another's
        assert place.swap(version, text) and not place.swap(version, text)
    assert "locked/lock.json" not in bucket
    gone = dataclasses.replace(lock.myself(), started="1")
    assert place.swap("0", json.dumps(dataclasses.asdict(gone)))
    with lock.held(folder):
        assert json.loads(content("locked/lock.json"))["token"] != gone.token
    assert "locked/lock.json" not in bucket and any("its owner is gone" in message for message in caplog.messages)


def test_a_checkpoint_that_cannot_be_written_is_no_fault_of_the_call(bucket, monkeypatch):
    """main makes exit status 2 of a ValueError, after which the supervisor gives up."""
    from gcp_storage_emulator.handlers import objects

    def forbidden(request, response, storage):
        response.status = HTTPStatus.FORBIDDEN

    monkeypatch.setattr(objects, "_media_upload", forbidden)  # how tensorstore uploads
    state = TrainState(step=jnp.ones((), jnp.int32), trainable={"w": jnp.ones(3)}, optimizer={"m": jnp.ones(3)})
    with pytest.raises(OSError, match="a checkpoint was not written"), Checkpoints("gs://bucket/broken", 1, 1) as checkpoints:
        checkpoints.save(state, {"method": "cat"})
        checkpoints.wait()


def test_a_damaged_checkpoint_in_a_bucket_gives_way_to_the_one_before(bucket, caplog):
    def state(step):
        return TrainState(step=jnp.asarray(step, jnp.int32), trainable={"w": jnp.full(3, float(step))}, optimizer={"m": jnp.ones(3)})

    folder = "gs://bucket/damaged/checkpoints"
    with Checkpoints(folder, 1, 2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), {"method": "cat"})
    written = {name for name in bucket if name.startswith("damaged/checkpoints/2/")}
    entries = manifest.check(f"{folder}/2/checksums.json").entries
    assert {f"damaged/checkpoints/2/{name}" for name in (*entries, "checksums.json")} == {name for name in written if name[-1] != "/"}
    with Checkpoints(folder, 1, 2) as checkpoints:
        assert int(checkpoints.restore(state(0), {"method": "cat"}).step) == 2
    name = max(entries, key=lambda name: entries[name]["bytes"])
    data = bytearray(epath.Path(f"{folder}/2/{name}").read_bytes())
    data[len(data) // 2] ^= 1
    epath.Path(f"{folder}/2/{name}").write_bytes(bytes(data))
    with Checkpoints(folder, 1, 2) as checkpoints:
        found = checkpoints.restore(state(0), {"method": "cat"})
        assert int(found.step) == 1 and float(found.trainable["w"][0]) == 1.0
        checkpoints.save(state(2), {"method": "cat"})
    assert f"{name} was cut, damaged or edited" in caplog.text and "step 1, the last whole one, is used" in caplog.text
    assert int(manifest.check(f"{folder}/2/checksums.json").part is not None)
