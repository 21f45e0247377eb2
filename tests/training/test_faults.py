"""Steps that are not finite: they change nothing and are counted over all calls; too many in a row end the training and are told of."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.checkpoints import load_trainable
from dat_jax.config import defaults
from dat_jax.data import pipeline
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import AdversarialRows
from dat_jax.methods.method import Method
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.settings import as_config
from dat_jax.training import faults, loop
from dat_jax.training.network import embed, response_nll

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2, remat=False)
POISON = 36  # a token


def rows(count, response, poisoned=()):
    prompts = [[1, POISON if i in poisoned else i % 30 + 2] for i in range(count)]
    return lay_out(prompts, [[False, True]] * count, [[response, i % 7 + 1] for i in range(count)], 4, 4)


def poisonable(network, reference, batch, found, key, settings):
    """The loss of the utility rows, which is not a number where one of them holds POISON."""
    nll = jnp.mean(response_nll(network, embed(network, batch.utility), batch.utility))
    bad = jnp.where(jnp.any(batch.utility.tokens_BxT == POISON), jnp.nan, 0.0)
    return nll + bad, {"loss/total": nll + bad, "loss/utility": nll + bad, "nll/clean": nll}


METHOD = Method(name="poisonable", title="Poisonable", prompts="requests", loss=poisonable)
ADVERSARIAL = AdversarialRows(rows(9, 8), rows(9, 9), ids=tuple(f"b{i}" for i in range(9)))


@pytest.fixture
def config():
    c = defaults()
    c.data.update({"prompt_length": 4, "response_length": 4, "adversarial_rows": 2, "utility_rows": 2})
    c.training.update({"steps": 12, "save_every": 2, "learning_rate": 1e-2, "log_every": 100})
    c.training.lora.update({"rank": 2})
    c.methods[METHOD.key] = as_config(METHOD.settings())
    return c


def train(config, folder, poisoned, watch=None):
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        params = jax.device_put(weights.initialize(jax.random.key(0), MODEL), sharding.replicated(mesh))
        model = Model(params, MODEL, None, "tiny")
        loop.train(METHOD, model, lambda *_: ADVERSARIAL, rows(11, 10, poisoned), config, 0, folder, mesh, watch)


def steps_with(row, config):
    """The steps whose batch holds a utility row."""
    utility = rows(11, 10)
    steps = range(1, config.training.steps + 1)
    return [step for step in steps if row in pipeline.row_numbers(ADVERSARIAL, utility, config.data, 0, step)["utility"]]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_skipped_step_leaves_weights_and_moments_bit_for_bit(config, rank):
    config.training.lora.rank = rank
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        model = Model(jax.device_put(weights.initialize(jax.random.key(0), MODEL), sharding.replicated(mesh)), MODEL, None, "tiny")
        state = loop.initial_state(model, config.training, 0, mesh)
        step, settings, adam = loop.compiled_step(state), loop.step_config(model, config, METHOD), loop.optimizer(config.training)

        def after(state, poisoned):
            batch = pipeline.Batch(away=rows(2, 8), toward=rows(2, 9), utility=rows(2, 10, poisoned))
            frozen = model.params if rank else None
            key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
            return step(state, frozen, loop.placed(mesh, batch, (2, 2)), key, config=settings, optimizer=adam)

        state, values = after(state, ())
        assert values["skipped"] == 0.0
        before = jax.device_get(state)
        state, values = after(state, (1,))
        assert values["skipped"] == 1.0 and math.isnan(values["loss/total"]) and int(state.step) == 2
        jax.tree.map(
            np.testing.assert_array_equal, jax.device_get((state.trainable, state.optimizer)), (before.trainable, before.optimizer)
        )
        state, values = after(state, ())
        assert values["skipped"] == 0.0 and np.isfinite(values["gradient_norm"])
        with pytest.raises(AssertionError):
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.trainable), before.trainable)


def test_skipped_steps_are_counted_over_all_calls_and_written_whatever_is_logged(config, tmp_path, caplog):
    expected = steps_with(3, config)
    assert 2 <= len(expected) < 5
    train(config, tmp_path / "whole", (3,))
    assert json.loads((tmp_path / "whole" / "finished.json").read_text())["skipped"] == len(expected)
    assert [line["step"] for line in lines(tmp_path / "whole") if line["skipped"]] == expected
    assert all(line["loss/total"] is None and line["nll/clean"] > 0 for line in lines(tmp_path / "whole") if line["skipped"])
    assert [m for m in caplog.messages if m == f"poisonable: step {expected[0]} is skipped: loss/total is nan"] == []
    assert [m for m in caplog.messages if m == f"poisonable: step {expected[0]} is skipped: loss/utility is nan"]

    def stop(*_):
        raise KeyboardInterrupt

    config.training.watch_every = expected[0] + 1
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", (3,), stop)
    train(config, tmp_path / "cut", (3,))
    assert json.loads((tmp_path / "cut" / "finished.json").read_text())["skipped"] == len(expected)
    shapes = loop.abstract_trainable(MODEL, 2, config.training.lora.alpha, sharding.make_mesh(1, 1, 1))
    ends = [load_trainable(tmp_path / name / "checkpoints", shapes) for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_too_many_in_a_row_end_the_training_with_rows_first_term_and_arrays(config, tmp_path):
    config.training.faults = 3
    messages = []
    for _ in range(2):  # no checkpoint was made of a state that skipped: the same command meets the same steps again
        with pytest.raises(ValueError) as caught:
            train(config, tmp_path, range(11))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    numbers = pipeline.row_numbers(ADVERSARIAL, rows(11, 10), config.data, 0, 3)
    (a, b), (c, d) = numbers["adversarial"], numbers["utility"]
    assert messages[0] == (
        "poisonable: the loss is nan at step 3, and with it 3 steps in a row were skipped; allowed: fewer than "
        "config.training.faults = 3. The first number that is not finite is loss/utility = nan. The step's rows are of the behaviors "
        f"'b{a}', 'b{b}', adversarial rows {a}, {b} and utility rows {c}, {d}, counted from 0; all of it is in {tmp_path}/fault_3.npz"
    )
    assert not (tmp_path / "finished.json").exists()
    batch = pipeline.batches(ADVERSARIAL, rows(11, 10, range(11)), config.data, 0)[2]
    with np.load(tmp_path / "fault_3.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["utility.tokens_BxT"], batch.utility.tokens_BxT)
        np.testing.assert_array_equal(found["away.response_mask_BxT"], batch.away.response_mask_BxT)
        assert found["rows.adversarial"].tolist() == [a, b] and found["rows.ids"].tolist() == [f"b{a}", f"b{b}"]
        assert np.isnan(found["metrics.loss.total"]) and found["metrics.nll.clean"] > 0


def test_a_training_of_skipped_steps_alone_does_not_end_as_if_it_were_one(config, tmp_path):
    config.training.steps = 2
    with pytest.raises(
        ValueError, match=r"at step 2, and with it 2 steps in a row were skipped; allowed: fewer than config\.training\.faults = 2"
    ):
        train(config, tmp_path, range(11))


@pytest.mark.parametrize(("norms", "said"), [([], False), ([1.0], False), ([1.0, 1.2, 0.9, 1.1], False), ([1.0, 1.2, 1.1, 50.0], True)])
def test_a_smaller_learning_rate_is_advised_where_gradients_grew_alone(config, tmp_path, norms, said):
    counted = faults.Faults("m", tmp_path, config, 0)
    batch = jax.tree.map(jnp.asarray, pipeline.batches(ADVERSARIAL, rows(11, 10), config.data, 0)[0])
    fed = faults.Fed(batch, ADVERSARIAL, rows(11, 10))
    for step, norm in enumerate(norms, 1):
        counted.note(step, {"skipped": 0.0, "loss/total": 1.0, "gradient_norm": norm}, fed)
    with pytest.raises(ValueError, match=r"the gradient's norm is inf at step") as caught:
        for step in range(10, 20):
            counted.note(step, {"skipped": 1.0, "loss/total": 1.0, "gradient_norm": math.inf}, fed)
    assert ("The gradient's norm grew from 1.1 to 50 before: a smaller config.training.learning_rate may help" in str(caught.value)) == said


def test_the_first_number_is_the_first_that_is_computed():
    values = {"loss/total": math.nan, "gradient_norm": math.nan, "loss/away": math.nan, "nll/harmful": 1.0}
    assert faults.first_fault(values) == "loss/away"
    assert faults.first_fault(values | {"nll/harmful": math.inf}) == "nll/harmful"
    assert faults.first_fault(values | {"attack/norm": math.inf}) == "attack/norm"
    assert faults.first_fault({"loss/total": 1.0, "gradient_norm": math.inf}) == "gradient_norm"
