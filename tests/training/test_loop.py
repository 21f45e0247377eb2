"""The loop: exact resume after a crash and after SIGTERM, one compilation, refusal of another run's checkpoints."""

import dataclasses
import json
import os
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.checkpoints import Checkpoints, abstract, keep, load_trainable
from dat_jax.config import defaults
from dat_jax.data import pipeline
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import AdversarialRows
from dat_jax.methods import METHODS
from dat_jax.methods.method import Method
from dat_jax.models import quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.settings import as_config
from dat_jax.training import loop, watching
from dat_jax.training.network import embed, response_nll

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2, remat=False)


def rows(count, response):
    return lay_out([[1, i % 30 + 2] for i in range(count)], [[False, True]] * count, [[response, i % 7 + 1] for i in range(count)], 4, 4)


@pytest.fixture
def config():
    return configured()


def configured():
    c = defaults()
    c.data.update({"prompt_length": 4, "response_length": 4, "adversarial_rows": 2, "utility_rows": 2})
    c.training.update({"steps": 8, "save_every": 3, "watch_every": 5, "learning_rate": 1e-2})
    c.training.lora.update({"rank": 2, "dropout": 0.3})
    c.methods.cat.perturbation.steps = 2
    return c


def first_round(*_):
    return AdversarialRows(rows(9, 8), rows(9, 9))


def train(config, folder, watch=None, devices=1, adversarial=first_round, refresh=0, method=METHODS["dat"]):
    mesh = sharding.make_mesh(1, devices, 1)
    with jax.set_mesh(mesh):
        params = jax.device_put(weights.initialize(jax.random.key(0), MODEL), sharding.replicated(mesh))
        model = Model(params, MODEL, None, "tiny")
        loop.train(method, model, adversarial, rows(11, 10), config, 0, folder, mesh, watch, refresh)
        return model


def result(config, folder, model):
    shapes = abstract(loop.initial_trainable(model, config.training, 0))
    assert max(int(path.name) for path in (folder / "checkpoints").iterdir()) == config.training.steps
    return load_trainable(folder / "checkpoints", shapes)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An undisturbed run's weights and losses."""
    config, folder = configured(), tmp_path_factory.mktemp("straight") / "straight"
    model = train(config, folder)
    return result(config, folder, model), {m["step"]: m["loss/total"] for m in metrics(folder)}


def crash(*_):
    raise KeyboardInterrupt


def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    return {"watch/benign_refused": 0.9}


@pytest.mark.parametrize("disturb, error", [(crash, KeyboardInterrupt), (stop, SystemExit)])
def test_a_disturbed_run_ends_with_the_same_weights(config, tmp_path, straight, disturb, error):
    folder = tmp_path / "disturbed"
    with pytest.raises(error) as caught:
        train(config, folder, disturb)
    if error is SystemExit:
        assert caught.value.code == loop.PREEMPTED
    assert not (folder / "finished.json").exists()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss/to')  # a line the killed process left half written
    model = train(config, folder)
    jax.tree.map(np.testing.assert_array_equal, result(config, folder, model), straight[0])
    lines = [m for m in metrics(folder) if "loss/total" in m]
    assert [m["step"] for m in lines] == list(range(1, 9))
    assert {m["step"]: m["loss/total"] for m in lines} == straight[1]
    assert json.loads((folder / "finished.json").read_text())["resumed_at"] == (3 if error is KeyboardInterrupt else 5)


def test_refreshed_rows_are_those_of_the_round_and_a_resumed_run_sees_the_same(config, tmp_path):
    """Rounds of 3 steps: each asks for rows once, with the model as it is then, also after a crash inside a round."""

    def watched(asked):
        def adversarial(round, params, lora):
            asked.append((round, float(np.sum(np.abs(np.asarray(lora.factors["q"]["b"]))))))
            return AdversarialRows(rows(9, 8 + round), rows(9, 9))

        return adversarial

    whole, before, after = [], [], []
    model = train(config, tmp_path / "whole", adversarial=watched(whole), refresh=3)
    assert [round for round, _ in whole] == [0, 1, 2] and whole[0][1] == 0.0 < whole[1][1]
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "crashed", crash, adversarial=watched(before), refresh=3)
    train(config, tmp_path / "crashed", adversarial=watched(after), refresh=3)
    assert before + after[1:] == whole and after[0] == before[-1]
    jax.tree.map(np.testing.assert_array_equal, result(config, tmp_path / "crashed", model), result(config, tmp_path / "whole", model))


def test_resume_on_another_number_of_devices(config, tmp_path, straight):
    folder = tmp_path / "moved"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, crash)
    model = train(config, folder, devices=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), result(config, folder, model), straight[0])


def test_a_finished_run_is_not_run_again_and_another_runs_checkpoint_is_refused(config, tmp_path):
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    train(config, tmp_path / "run", crash)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "run" / "finished.json").unlink()
    config.training.steps = 9
    with pytest.raises(ValueError, match="the checkpoint of step 8 was made with steps = 8, now it is 9; use a new folder"):
        train(config, tmp_path / "run")


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_step_before_or_is_an_error(config, tmp_path, straight, caplog):
    folder = tmp_path / "run"
    train(config, folder)

    def damage(step):
        (folder / "finished.json").unlink()
        for file in (folder / "checkpoints" / str(step)).rglob("*"):
            if file.is_file() and "trainable" in str(file):
                file.write_bytes(b"")

    damage(8)
    model = train(config, folder)
    assert "step 6, the last whole one, is used" in caplog.text
    assert json.loads((folder / "finished.json").read_text())["resumed_at"] == 6
    jax.tree.map(np.testing.assert_array_equal, result(config, folder, model), straight[0])
    assert {m["step"]: m["loss/total"] for m in metrics(folder)} == straight[1]
    shutil.rmtree(folder / "checkpoints" / "6")
    damage(8)
    with pytest.raises(ValueError, match=r"no checkpoint is whole, of 8: .*checkpoints/8/.* was cut, damaged or edited"):
        train(config, folder)


def test_collapse_is_said(config, tmp_path):
    train(config, tmp_path / "run", lambda *_: {"watch/benign_refused": 0.9})
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["collapsed"] is True
    assert any(m.get("watch/benign_refused") == 0.9 for m in metrics(tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.training.learning_rate = 1e30
    config.training.clip = 1e30
    with pytest.raises(ValueError, match=r"the loss is (nan|inf|-inf) at step \d"):
        train(config, tmp_path / "run")


def test_all_weights_can_be_trained(config, tmp_path):
    config.training.lora.rank = 0
    model = train(config, tmp_path / "run")
    tuned = loop.merged(model, *loop.restore(model, tmp_path / "run", sharding.make_mesh(1, 1, 1)))
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), tuned.params, model.params)
    assert all(m > 0 for m in jax.tree.leaves(moved))


def test_one_compilation_serves_a_run_with_resume(config, tmp_path):
    """Counted by jax itself: the step's cache holds one program after stepping, restoring and stepping again."""
    jax.clear_caches()  # jax shares the cache among jits of one function: other tests' programs would be counted
    mesh = sharding.make_mesh(1, 2, 1)
    with jax.set_mesh(mesh):
        model = Model(jax.device_put(weights.initialize(jax.random.key(0), MODEL), sharding.replicated(mesh)), MODEL, None, "tiny")
        state = loop.initial_state(model, config.training, 0, mesh)
        step = loop.compiled_step(state)
        data = pipeline.batches(AdversarialRows(rows(9, 8), rows(9, 9)), rows(11, 10), config.data, 0)
        settings, adam = loop.step_config(model, config, METHODS["dat"]), loop.optimizer(config.training)
        key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))

        def advance(state, number):
            return step(state, model.params, loop.placed(mesh, data[number], (2, 2)), key, config=settings, optimizer=adam)[0]

        state = advance(advance(state, 0), 1)
        with Checkpoints(tmp_path / "c", 1, 1) as checkpoints:
            checkpoints.save(state, {"run": 1}, force=True)
            checkpoints.wait()
            state = checkpoints.restore(loop.initial_state(model, config.training, 0, mesh), {"run": 1})
        assert int(state.step) == 2
        advance(state, 2)
        assert step._cache_size() == 1


def test_a_batch_in_parts_over_several_tpu_chips_is_compiled_in_a_way_of_its_own():
    chip, cpu = types.SimpleNamespace(platform="tpu"), types.SimpleNamespace(platform="cpu")
    assert loop.options_of([chip] * 4, 2) == {"xla_tpu_enable_latency_hiding_scheduler": False}
    assert [loop.options_of(*case) for case in (([chip], 2), ([chip] * 4, 1), ([cpu] * 4, 2))] == [None] * 3


def test_quantized_weights_are_not_trained_themselves(config):
    small = ModelConfig(vocab_size=272, width=64, layers=1, heads=2, mlp_width=64)
    params = weights.initialize(jax.random.key(0), small)
    params["layers"]["q"] = quantized.of_stack(params["layers"]["q"], "int8")
    config.training.lora.rank = 0
    with pytest.raises(ValueError, match=r"training\.lora\.rank is 0, .* are in int8; allowed: 1 or more"):
        loop.initial_trainable(Model(params, small, None), config.training, 0)


def test_a_method_that_looks_at_the_reference_gets_the_weights_before_training(config, tmp_path):
    """A method of one's own: no inner maximisation, and a loss that is zero only while the model is its reference."""

    def apart(network, reference, batch, found, key, settings):
        assert found is None and reference.lora is None
        nll, before = (response_nll(n, embed(n, batch.utility), batch.utility) for n in (network, reference))
        distance = jnp.mean(jnp.abs(nll - before))
        return jnp.mean(nll), {"loss/total": jnp.mean(nll), "loss/distance": distance}

    method = Method(name="apart", title="Apart", prompts="requests", loss=apart, needs_reference=lambda settings: True)
    config.training.lora.update({"dropout": 0.0})
    config.methods["apart"] = as_config(method.settings())
    for rank in (2, 0):
        config.training.lora.rank = rank
        train(config, tmp_path / str(rank), method=method)
        lines = metrics(tmp_path / str(rank))
        assert lines[0]["loss/distance"] == 0.0 < lines[1]["loss/distance"] < lines[-1]["loss/distance"]
        assert not any(name.startswith("attack/") for name in lines[0])
    with pytest.raises(ValueError, match="undefended trains nothing; allowed: a method with a loss"):
        train(config, tmp_path / "undefended", method=METHODS["undefended"])


def test_a_checkpoint_is_restored_on_any_mesh_and_onto_its_own_model_alone(config, tmp_path, straight):
    model = train(config, tmp_path / "run")
    params, lora = loop.restore(model, tmp_path / "run", sharding.make_mesh(1, 2, 1))
    assert params is model.params and {x.sharding.mesh.size for x in jax.tree.leaves(lora)} == {2}
    assert lora.scale == config.training.lora.alpha / config.training.lora.rank
    jax.tree.map(np.testing.assert_array_equal, lora.factors, straight[0].factors)
    moved = dataclasses.replace(model, source="/elsewhere/tiny/")  # the folder's name counts, not where it is
    jax.tree.map(np.testing.assert_array_equal, loop.restore(moved, tmp_path / "run", sharding.make_mesh(1, 1, 1))[1].factors, lora.factors)
    other = dataclasses.replace(model, source="huge")
    with pytest.raises(ValueError, match=r"run was trained from 'tiny', and the target is 'huge'; set config\.target\.model to it"):
        loop.restore(other, tmp_path / "run", sharding.make_mesh(1, 1, 1))
    with pytest.raises(ValueError, match="no checkpoint; run --mode=train first"):
        loop.restore(model, tmp_path / "nothing", sharding.make_mesh(1, 1, 1))


def test_rows_at_a_time_become_parts_of_the_batch(config):
    model = Model({}, MODEL, None, "tiny")
    config.data.update({"adversarial_rows": 4, "utility_rows": 8})
    for size, parts in ((0, 1), (12, 1), (6, 2), (3, 4)):
        config.training.micro_batch = size
        assert loop.step_config(model, config, METHODS["dat"]).parts == parts


# Broken and refused by step: 3 refuses too much, 4 refuses less than 2, 5 is equal to 4 and later, 5 to 7 are no progress.
COURSE = {1: (0.9, 0.0), 2: (0.5, 0.2), 3: (0.4, 0.9), 4: (0.5, 0.1), 5: (0.5, 0.1), 6: (0.6, 0.0), 7: (0.5, 0.3), 8: (0.0, 0.0)}


def measuring(first=1, killed_at=0):
    """A watch that measures COURSE from a step on, and is interrupted in place of the measurement of one."""
    steps = iter(range(first, 9))

    def watch(*_):
        if (step := next(steps)) == killed_at:
            raise KeyboardInterrupt
        broken, refused = COURSE[step]
        return {"watch/broken": broken, "watch/benign_refused": refused}

    return watch


def test_the_best_step_is_used_and_the_same_one_after_kills(config, tmp_path, monkeypatch, caplog):
    config.training.update({"watch_every": 1, "save_every": 3, "best_refusals": 0.5, "patience": 3})
    adam = loop.optimizer(config.training)
    monkeypatch.setattr(loop, "optimizer", lambda *_: adam)  # one program for all calls
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    model = train(config, straight, measuring())
    end = json.loads((straight / "finished.json").read_text())
    assert {key: end[key] for key in ("used", "used_step", "steps", "steps_asked")} == {
        "used": "best", "used_step": 5, "steps": 7, "steps_asked": 8
    }  # fmt: skip
    assert end["stopped"] == "no better measurement in 3 in a row"
    assert json.loads((straight / "best.json").read_text())["rates"] == {"watch/broken": 0.5, "watch/benign_refused": 0.1}

    with pytest.raises(KeyboardInterrupt):  # step 4 has a checkpoint, and no measurement
        train(config, killed, measuring(killed_at=4))
    with monkeypatch.context() as patch:  # step 5 has both, and the weights are not kept yet
        patch.setattr(watching.checkpoints_lib, "keep", lambda folder, step, *_: crash() if step == 5 else keep(folder, step, *_))
        with pytest.raises(KeyboardInterrupt):
            train(config, killed, measuring(4))
    assert not (killed / "best" / "5").exists()
    with pytest.raises(KeyboardInterrupt):
        train(config, killed, measuring(6, killed_at=7))
    train(config, killed, measuring(7))
    again = json.loads((killed / "finished.json").read_text())
    assert again["resumed_at"] == 7 and {key for key in end if end[key] != again[key]} == {"seconds", "resumed_at", "manifest"}
    watched = [m for m in metrics(killed) if "watch/broken" in m]
    assert watched == [m for m in metrics(straight) if "watch/broken" in m] and [m["step"] for m in watched] == list(range(1, 8))

    mesh = sharding.make_mesh(1, 1, 1)
    ends = [loop.restore(model, folder, mesh)[1].factors for folder in (straight, killed)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    last = load_trainable(killed / "checkpoints", abstract(loop.initial_trainable(model, config.training, 0))).factors
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(ends[0])))

    damaged = max((killed / "best" / "5").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"best/5/.* was cut, damaged or edited.* the best measured, and no others take their place"):
        loop.restore(model, killed, mesh)
    (killed / "finished.json").unlink()
    with pytest.raises(ValueError, match=r"best/5/.* was cut, damaged or edited"):
        train(config, killed, crash)

    # No measurement within the bound: the last step's weights, as without the key.
    config.training.update({"best_refusals": 0.0, "patience": 0, "watch_every": 8})
    train(config, tmp_path / "none", lambda *_: {"watch/broken": 0.0, "watch/benign_refused": 0.1})
    assert "no measurement refused at most 0 %: the weights of the last step are used" in caplog.text
    end = json.loads((tmp_path / "none" / "finished.json").read_text())
    assert (end["used"], end["steps"]) == ("last", 8) and not (tmp_path / "none" / "best").exists()
    assert loop.used(tmp_path / "none").step == 8
