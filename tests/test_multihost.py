"""Several hosts, imitated by processes on loopback: a run that is stopped and resumed by another number of them ends as one process's."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

DEVICES, STEPS = 4, 60


def worker(folder: str, dump: str) -> None:
    """What each process runs: a tiny model on all devices, and at the end the trained weights, gathered."""
    import jax

    from dat_jax import sharding
    from dat_jax.checkpoints import load_trainable
    from dat_jax.config import defaults
    from dat_jax.data.conversations import lay_out
    from dat_jax.data.pipeline import AdversarialRows
    from dat_jax.methods import METHODS
    from dat_jax.models import weights
    from dat_jax.models.config import ModelConfig
    from dat_jax.models.huggingface import Model
    from dat_jax.training import loop

    sharding.initialize(int(os.environ["JAX_NUM_PROCESSES"]), timeout=120)
    config, model_config = defaults(), ModelConfig(vocab_size=32, width=16, layers=1, heads=2, remat=False)
    config.data.update({"prompt_length": 4, "response_length": 4, "adversarial_rows": 4, "utility_rows": 4})
    config.training.update({"steps": STEPS, "save_every": 20, "learning_rate": 1e-2})
    config.training.lora.update({"rank": 2})
    config.methods.cat.perturbation.update({"steps": 1, "optimizer": "normalized"})

    def rows(count, response):
        return lay_out(
            [[1, i % 25 + 2] for i in range(count)], [[False, True]] * count, [[response, i % 7 + 1] for i in range(count)], 4, 4
        )

    mesh = sharding.make_mesh(fsdp=DEVICES)
    with jax.set_mesh(mesh):
        shapes, values = weights.abstract(model_config, "float32", mesh), weights.initialize(jax.random.key(0), model_config)
        params = jax.tree.map(lambda x, shape: jax.device_put(np.asarray(x), shape.sharding), values, shapes)
        model = Model(params, model_config, None, "tiny")
        adversarial = AdversarialRows(rows(9, 8), rows(9, 9))
        loop.train(METHODS["dat"], model, lambda *_: adversarial, rows(11, 10), config, 0, folder, mesh)
        shapes = loop.abstract_state(model_config, config.training, mesh).trainable
        trained = load_trainable(epath.Path(folder) / "checkpoints", shapes)
        whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(trained)
        if jax.process_index() == 0:
            np.savez(dump, *[np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(whole)])


def start(tiny_job, folder, dump, processes):
    variables = os.environ | tiny_job.loopback(processes, DEVICES)
    return [
        subprocess.Popen([sys.executable, __file__, str(folder), str(dump)], env=variables | {"JAX_PROCESS_ID": str(index)})
        for index in range(processes)
    ]


def steps(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_PROCESSES", "1")
        worker(str(folder / "run"), str(folder / "weights.npz"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def lonely():
    """A process that waits for another one, which never comes. It is started first: it does little but wait."""
    code = "from dat_jax import sharding; sharding.initialize(2, timeout=3)"
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": "localhost:38453"}
    variables |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=variables, **pipes) as process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 4)])
def test_stopped_on_some_hosts_and_resumed_on_others(tiny_job, tmp_path, alone, first, then):
    stop_and_resume(tiny_job, tmp_path / "run", tmp_path / "weights.npz", alone, first, then)


def stop_and_resume(tiny_job, run, dump, alone, first, then):
    processes = start(tiny_job, run, dump, first)
    deadline = time.monotonic() + 300
    while len(steps(run)) < 5 and time.monotonic() < deadline and all(p.poll() is None for p in processes):
        time.sleep(0.02)
    processes[-1].send_signal(signal.SIGTERM)  # one host learns of it first, as on a slice
    assert tiny_job.ended(processes, 600) == [75] * first
    reached = len(steps(run))
    assert 5 <= reached < STEPS and not (run / "finished.json").exists()
    assert tiny_job.ended(start(tiny_job, run, dump, then), 600) == [0] * then
    assert json.loads((run / "finished.json").read_text())["resumed_at"] == reached
    found, expected = np.load(dump), np.load(alone / "weights.npz")
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-5)
    losses, lone = ([m["loss/total"] for m in steps(folder)] for folder in (run, alone / "run"))
    np.testing.assert_allclose(losses, lone, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_host_that_does_not_show_up_is_an_error_on_the_others(lonely):
    _, said = lonely.communicate(timeout=200)  # jax's own timeout is 300 s: a call that did not pass ours on would still be waiting
    assert lonely.returncode != 0
    assert "DEADLINE_EXCEEDED" in said


if __name__ == "__main__":
    worker(*sys.argv[1:])
