"""R2D2: suffixes behind the users' words, GCG on them, the pool in the train state and in checkpoints, and the loss on fixed numbers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import checkpoints, sharding
from dat_jax.config import defaults, validate
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import AdversarialRows, Batch
from dat_jax.methods import METHODS, r2d2
from dat_jax.methods.method import StepShape
from dat_jax.models import flops, transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training import loop
from dat_jax.training.network import Found, Network
from dat_jax.training.suffixes import behind

MODEL = ModelConfig(vocab_size=37, width=16, layers=2, heads=2, remat=False)
P, R = 6, 5
# A begin token, the user's words, a closing token; the suffix belongs before the last.
PROMPTS, USERS = [[1, 5, 7, 2], [1, 3, 2, 8, 4, 2]], [[False, True, True, False], [False, True, True, True, True, False]]
HARMFUL, REFUSALS = [[4, 5, 0], [9, 9]], [[2, 2], [3, 2, 1]]
UTILITY = lay_out([[1, 8], [1, 9, 9], [3]], [[False] * 2, [False] * 3, [False]], [[5], [6, 7], [8, 8, 8, 8]], P, R)
BATCH = Batch(lay_out(PROMPTS, USERS, HARMFUL, P, R), lay_out(PROMPTS, USERS, REFUSALS, P, R), UTILITY, np.array([0, 3]))
SUFFIXES = np.array([[11, 12, 13], [21, 22, 23]], np.int32)
SMALL = {"pool": 3, "tokens": 3, "steps": 2, "candidates": 8, "topk": 6, "batch_size": 4, "reset_every": 2, "reset_share": 0.4}


def written(responses, suffixes):
    """The rows as `lay_out` makes them of prompts that have the suffixes in them."""
    prompts = [[*prompt[:-1], *map(int, suffix), prompt[-1]] for prompt, suffix in zip(PROMPTS, suffixes)]
    users = [[*mask[:-1], *[True] * len(suffix), mask[-1]] for mask, suffix in zip(USERS, suffixes)]
    return lay_out(prompts, users, responses, P + len(suffixes[0]), R)


search, loss, reset = (jax.jit(function, static_argnames="settings") for function in (r2d2.search, r2d2.loss, r2d2.reset))


@jax.jit
def log_probabilities(params, rows):
    e_BxTxD = transformer.embed(params, MODEL, rows.tokens_BxT)
    return jax.nn.log_softmax(transformer.head(params, MODEL, transformer.hidden(params, MODEL, e_BxTxD, rows.valid_BxT)))


def nats(network, rows):
    """-log p of each response token, a list per row, from the logits of the plain forward pass."""
    logp_BxTxV = np.asarray(log_probabilities(network.params, rows))
    return [
        np.array([-logp_BxTxV[b, t - 1, rows.tokens_BxT[b, t]] for t in np.flatnonzero(mask)])
        for b, mask in enumerate(np.asarray(rows.response_mask_BxT))
    ]


@pytest.fixture(scope="module")
def network():
    return Network(weights.initialize(jax.random.key(0), MODEL), None, MODEL, P)


def test_a_suffix_stands_behind_the_users_words(network):
    longer, rows, columns_BxS = behind(network, BATCH.away, jnp.asarray(SUFFIXES))
    expected = written(HARMFUL, SUFFIXES)
    assert longer.prompt_length == P + 3
    for name in ("tokens_BxT", "prompt_mask_BxT", "response_mask_BxT", "valid_BxT"):
        np.testing.assert_array_equal(np.asarray(getattr(rows, name)), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(rows.tokens_BxT), np.asarray(columns_BxS), 1), SUFFIXES)


def test_loss_on_fixed_numbers(network):
    """0.5 mean -log(1 - p(harmful)) + 0.5 NLL(refusal), both behind the suffix, + NLL(benign) without; HarmBench's weights."""
    harmful = [np.where(row > 5, 0.0, -np.log1p(-np.exp(-row))).mean() for row in nats(network, written(HARMFUL, SUFFIXES))]
    refusal = [row.mean() for row in nats(network, written(REFUSALS, SUFFIXES))]
    utility = [row.mean() for row in nats(network, UTILITY)]
    found = Found({}, jnp.zeros(2), {"attack/loss": jnp.zeros(())}, suffix_BxS=jnp.asarray(SUFFIXES))
    total, metrics = loss(network, None, BATCH, found, jax.random.key(0), settings=r2d2.Settings())
    np.testing.assert_allclose(total, 0.5 * np.mean(harmful) + 0.5 * np.mean(refusal) + np.mean(utility), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/refusal"], np.mean(refusal), rtol=1e-5)


def test_published_numbers():
    found = r2d2.Settings()
    assert (found.pool, found.tokens, found.steps, found.candidates, found.topk) == (180, 20, 5, 512, 256)
    assert (found.reset_every, found.reset_share) == (50, 0.2)
    how = found.objective
    assert (how.away_weight, how.toward_weight, how.utility_weight, how.away_cutoff, how.away) == (0.5, 0.5, 1.0, 5.0, "log_1_minus_p")


def test_the_search_lowers_the_loss_one_token_at_a_time(network):
    """The losses that it reports are those of the plain forward pass on prompts that have the suffixes in them."""
    settings, allowed_A = r2d2.Settings(**SMALL | {"steps": 1, "candidates": 32}), jnp.arange(10, 30)
    suffix_BxS, totals = jnp.asarray(SUFFIXES), []
    for step in range(3):
        after_BxS, before_B, after_B = search(network, BATCH.away, suffix_BxS, jax.random.key(step), allowed_A, settings=settings)
        for suffixes, losses in ((suffix_BxS, before_B), (after_BxS, after_B)):
            expected = [row.mean() for row in nats(network, written(HARMFUL, np.asarray(suffixes)))]
            np.testing.assert_allclose(losses, expected, rtol=1e-5)
        changed_BxS = np.asarray(after_BxS != suffix_BxS)
        assert changed_BxS.sum(axis=1).max() <= 1 and set(np.asarray(after_BxS)[changed_BxS]) <= set(range(10, 30))
        assert np.all(after_B <= before_B)
        totals.append(float(jnp.sum(after_B)))
        suffix_BxS = after_BxS
    assert totals[-1] < totals[0] - 1e-3


def test_the_pool_gets_the_suffixes_of_its_rows_and_of_two_for_one_the_later():
    pool_NxS = jnp.zeros((4, 2), jnp.int32)
    found = r2d2.put(pool_NxS, jnp.array([2, 0, 2]), jnp.array([[1, 1], [2, 2], [3, 3]]))
    np.testing.assert_array_equal(found, [[2, 2], [0, 0], [3, 3], [0, 0]])


def test_a_share_of_the_pool_starts_anew_when_it_is_due():
    settings = r2d2.Settings(reset_every=5, reset_share=0.2)
    pool = {"suffix_NxS": jnp.zeros((10, 4), jnp.int32), "allowed_A": jnp.arange(7, 20), "updates": jnp.asarray(0)}
    for updates, anew in ((0, 0), (4, 0), (5, 2), (6, 0), (10, 2)):
        found = reset(pool | {"updates": jnp.asarray(updates)}, jax.random.key(updates), settings=settings)["suffix_NxS"]
        assert int(jnp.sum(jnp.any(found != 0, axis=1))) == anew
        assert set(np.asarray(found).ravel().tolist()) <= {0, *range(7, 20)}


def test_behaviors_beyond_the_pool_share_a_suffix(network, monkeypatch):
    """Behaviors 0 and 3 with a pool of 3: the later row's suffix is the one that is kept. What the search finds is made up."""
    settings = r2d2.Settings(**SMALL)
    start = r2d2.memory(settings, Model({}, MODEL, None), 0)
    monkeypatch.setattr(r2d2, "search", lambda *_: (jnp.asarray(SUFFIXES), jnp.ones(2), jnp.zeros(2)))
    found = r2d2.inner(network.replace(memory=start), BATCH, jax.random.key(1), settings)
    np.testing.assert_array_equal(found.memory["suffix_NxS"][0], found.suffix_BxS[1])
    np.testing.assert_array_equal(found.memory["suffix_NxS"][1:], start["suffix_NxS"][1:])
    assert int(found.memory["updates"]) == 1


def test_the_pool_holds_what_a_user_can_type(small_model):
    start = r2d2.memory(r2d2.Settings(pool=50, tokens=8), small_model, 3)
    spelled = set(small_model.tokenizer.convert_ids_to_tokens(np.unique(start["suffix_NxS"]).tolist()))
    assert start["suffix_NxS"].shape == (50, 8) and not any(word.startswith("<") for word in spelled)
    assert not np.array_equal(start["suffix_NxS"], r2d2.memory(r2d2.Settings(pool=50, tokens=8), small_model, 4)["suffix_NxS"])


def adversarial(*_):
    prompts = [[1, i + 3, i + 4, 2] for i in range(5)]
    rows = [lay_out(prompts, [[False, True, True, False]] * 5, [[of, i + 1] for i in range(5)], P, R) for of in (8, 9)]
    return AdversarialRows(*rows, ids=("a", "a", "b", "c", "c"))


def train(config, folder):
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        params = jax.device_put(weights.initialize(jax.random.key(0), MODEL), sharding.replicated(mesh))
        model = Model(params, MODEL, None, "tiny")
        loop.train(METHODS["r2d2"], model, adversarial, UTILITY, config, 0, folder, mesh)
        state = loop.initial_state(model, config.training, 0, mesh, METHODS["r2d2"].memory(r2d2.Settings(**SMALL), model, 0))
        found = checkpoints.read(folder / "checkpoints")
        with checkpoints.Checkpoints(folder / "checkpoints", 2, 2) as kept:
            return state, kept.restore(state, found.about)


def test_a_run_that_was_killed_ends_with_the_same_weights_and_the_same_pool(tmp_path):
    """Two parts per batch, so the pool also passes from part to part; a share of it starts anew on the way."""
    config = defaults()
    config.data.update({"prompt_length": P, "response_length": R, "adversarial_rows": 2, "utility_rows": 2})
    config.training.update({"steps": 4, "save_every": 2, "learning_rate": 1e-2, "micro_batch": 2})
    config.training.lora.rank = 2
    config.methods.r2d2.update(SMALL)
    start, whole = train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (tmp_path / "finished.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "4")  # what a call leaves that is killed after step 2
    _, resumed = train(config, tmp_path)
    assert json.loads((tmp_path / "finished.json").read_text())["resumed_at"] == 2
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert int(whole.memory["updates"]) == 8
    assert not np.array_equal(whole.memory["suffix_NxS"], start.memory["suffix_NxS"])
    assert len(lines) == 4 and all(line["attack/gain"] >= 0 for line in lines)


def test_operations_of_a_step():
    settings, shape = r2d2.Settings(**SMALL), StepShape(P, R, 2, 3, 0)
    longer = P + R + 3
    one = flops.input_gradient(MODEL, flops.Pass(2, longer, R)) + 2 * 2 * 3 * 16 * 37 + 8 * flops.forward(MODEL, flops.Pass(2, longer, R))
    update = [flops.train_step(MODEL, 0.0, flops.Pass(*rows, R), 0)["defence"] for rows in ((4, longer), (3, P + R))]
    found = r2d2.step_flops(MODEL, settings, shape)
    np.testing.assert_allclose((found["attack"], found["defence"]), (2 * one, sum(update)), rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("methods.r2d2.batch_size", 100, "config.methods.r2d2.batch_size is 100; allowed: a divisor of candidates = 512"),
        ("methods.r2d2.reset_share", 1.5, "config.methods.r2d2.reset_share is 1.5; allowed: a share, 0 to 1"),
        ("data.perturb", "all", "config.data.perturb is 'all'; allowed: user: r2d2 writes behind the user's words"),
    ],
)
def test_settings_that_cannot_be(key, value, message):
    config = defaults()
    config.target.model, config.training.methods = "m", ("r2d2",)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError) as caught:
        validate(config, data=False)
    assert str(caught.value) == message
