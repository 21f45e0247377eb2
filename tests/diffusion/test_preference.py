"""Adapting a sampler by preference: the loss against exact likelihoods and its closed form, and what an adaptation changes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dat_jax.diffusion import preference
from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.diffusion.layout import Rows
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Pair, Preference
from dat_jax.diffusion.sampler import row_keys

POOL = Pool(samples=4, keep=2, prompt_tokens=(1, 3), response_tokens=3, steps=3, separator=" answer :", likelihood_samples=2)

MANY = 256  # keys that a mean is taken over


def exact_bound(params, config, tokens_T, free):
    """The log-probability of the tokens at the free places of a row: the mean over all orders, by enumeration in float64."""
    states = [mask for mask in itertools.product((False, True), repeat=len(free)) if any(mask)]
    rows = np.tile(tokens_T, (len(states), 1))
    for row, mask in zip(rows, states):
        row[np.array(free)[list(mask)]] = config.mask_token
    logits = np.array(masked_logits(params, config, jnp.asarray(rows), jnp.ones(rows.shape, bool)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    orders = list(itertools.permutations(range(len(free))))
    total = 0.0
    for order in orders:
        hidden = [True] * len(free)
        for place in order:
            total += log_p[states.index(tuple(hidden)), free[place], tokens_T[free[place]]] / len(orders)
            hidden[place] = False
    return total


def tiny_pair():
    """Two prompts of two tokens before the same response, [x x | y]."""
    tokens = np.array([[[0, 1, 2], [3, 1, 2]]], np.int32)
    prompt = np.array([[[True, True, False]] * 2])
    return Rows(tokens, prompt, ~prompt, np.ones_like(prompt))


def test_the_loss_is_the_closed_form_on_exact_likelihoods(tiny_world):
    """Two prompt tokens and two draws end to end: each draw pair covers every count, so the mean over keys is the exact bound."""
    params, config = tiny_world.params, tiny_world.config
    moved = jax.tree.map(lambda x: 1.1 * x, params)
    rows, beta = tiny_pair(), 0.3
    exact = {(name, row): exact_bound(w, config, rows.tokens_BxT[0, row], [0, 1])
             for name, w in (("moved", moved), ("reference", params)) for row in (0, 1)}  # fmt: skip
    margin = (exact["moved", 0] - exact["reference", 0]) - (exact["moved", 1] - exact["reference", 1])
    tiled = jax.tree.map(lambda x: np.tile(x, (MANY, 1, 1)), rows)
    keys = row_keys(jax.random.key(0), jnp.arange(MANY))
    loss, margin_B = preference.preference_loss(moved, params, config, tiled, keys, beta, 2)
    found = np.asarray(margin_B, np.float64)
    assert found.std() > 0 and found.mean() == pytest.approx(margin, abs=4 * found.std() / np.sqrt(MANY) + 1e-5)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-beta * found)).mean(), rel=1e-5)  # -log sigmoid, by hand
    assert abs(margin) > 0.05  # the two differ, so the signs are seen


def test_at_the_reference_the_loss_is_log_two_whatever_is_masked(tiny_world):
    """The same masks for both models: without them the margins of single draws would not be zero."""
    rows = jax.tree.map(lambda x: np.tile(x, (MANY, 1, 1)), tiny_pair())
    keys = row_keys(jax.random.key(1), jnp.arange(MANY))
    loss, margin_B = preference.preference_loss(tiny_world.params, tiny_world.params, tiny_world.config, rows, keys, 0.7, 2)
    np.testing.assert_array_equal(margin_B, 0.0)
    assert float(loss) == pytest.approx(np.log(2), abs=1e-6)


def test_the_gradient_is_the_derivative_and_leaves_the_reference_alone(tiny_world):
    """One free token: the bound is log softmax of the logits at its place, so the derivative in the head is known by hand."""
    params, config, beta = tiny_world.params, tiny_world.config, 0.5
    rows = tiny_pair()
    one = Rows(np.array([[[0, 1, 2], [3, 1, 2]]], np.int32), np.array([[[True, False, False]] * 2]), rows.response_mask_BxT, rows.valid_BxT)
    keys = row_keys(jax.random.key(0), jnp.arange(1))

    def loss(params, reference):
        return preference.preference_loss(params, reference, config, one, keys, beta, 1)[0]

    moving, still = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, params)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(still))
    # At the reference the loss is -beta/2 * (logit of the preferred token - logit of the rejected one): the normalizers cancel.
    masked = jnp.asarray([[config.mask_token, 1, 2]])

    def by_hand(params):
        logits_V = masked_logits(params, config, masked, jnp.ones((1, 3), bool))[0, 0]
        return -beta / 2 * (logits_V[0] - logits_V[3])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), moving, jax.jit(jax.grad(by_hand))(params))


def test_every_prompt_is_paired_with_one_of_the_other_kind_for_the_same_response():
    broke = {"how yes", "how no", "why no", "open", "close"}
    asked = [("a", y, f"{word} {y}") for y in ("yes", "no") for word in ("how", "why", "do")] + [("b", "y", "open"), ("b", "y", "close")]
    tried = [(*one, one[-1] in broke) for one in asked]
    pairs = preference.pairs_of(tried, 8, 0, 1)
    assert {pair.behavior_id for pair in pairs} == {"a"}  # all prompts of b broke the target: nothing is preferred
    assert {(p.response, p.preferred, p.rejected) for p in pairs} == {
        ("yes", "how yes", "why yes"), ("yes", "how yes", "do yes"), ("no", "how no", "do no"), ("no", "why no", "do no")
    }  # fmt: skip
    assert pairs == preference.pairs_of(tried, 8, 0, 1) and len(preference.pairs_of(tried, 2, 0, 1)) == 2
    assert preference.pairs_of([(*one, False) for one in asked], 8, 0, 1) == []


@pytest.fixture(scope="module")
def learned(small_sampler):
    settings = Preference(steps=12, learning_rate=3e-2, draws=2, batch_size=3, rank=2, beta=0.25)
    pairs = [Pair("a", "yes", "open it", "close it"), Pair("b", "no", "open now", "close now")]
    return pairs, settings, preference.adapt(POOL, small_sampler, pairs, settings, (0, 1), lambda line: None)


def test_what_is_preferred_becomes_likelier_than_what_is_rejected(small_sampler, learned):
    pairs, _, factors = learned
    rows = preference.pair_rows(POOL, small_sampler, pairs)
    after = preference.adapted(small_sampler, factors)
    for tokens, target in zip(rows.tokens_BxT, rows.prompt_mask_BxT):
        ends = [exact_bound(m.params, m.config, row, list(np.flatnonzero(free)))
                for m in (small_sampler, after) for row, free in zip(tokens[:, 1:], target[:, 1:])]  # fmt: skip
        assert ends[2] - ends[3] > ends[0] - ends[1] + 0.5
    np.testing.assert_array_equal(after.params["embedding"], small_sampler.params["embedding"])


def test_it_is_repeatable_and_comes_back_from_its_files(small_sampler, learned, tmp_path):
    pairs, settings, factors = learned
    again = preference.adapt(POOL, small_sampler, pairs, settings, (0, 1), lambda line: None)
    jax.tree.map(np.testing.assert_array_equal, factors, again)
    folder = epath.Path(tmp_path / "round_1" / preference.FOLDER)
    preference.write(folder, {"round": 1}, pairs, factors, {"adapting_flops": 3.0})
    there, back = preference.read(folder, {"round": 1})
    assert there and preference.cost_of(folder) == {"adapting_flops": 3.0}
    ends = [preference.adapted(small_sampler, found).params for found in (factors, back)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    with pytest.raises(ValueError, match=r"adapted\.json was made with round = 1, now it is 2; put it back as it was, or delete its"):
        preference.read(folder, {"round": 2})
    (folder / preference.FACTORS).write_bytes((folder / preference.FACTORS).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"factors\.safetensors was cut, damaged or edited"):
        preference.read(folder, {"round": 1})


def test_a_prompt_that_the_pool_could_not_draw_gives_no_pair(small_sampler):
    pairs = [Pair("a", "yes", "open it now you", "close it"), Pair("a", "yes", "open", "close"), Pair("a", "yes", "open", "")]
    assert preference.pair_rows(POOL, small_sampler, pairs).tokens_BxT.shape[0] == 1
    none = preference.adapt(POOL, small_sampler, pairs[:1], Preference(steps=1), (0,), lambda line: None)
    assert none is None and preference.adapted(small_sampler, none) is small_sampler


def test_operations_grow_with_what_is_done(small_sampler):
    """A draw is a forward (1), and forward and backward of the same pass (at least 2); nothing grows faster than its number."""
    one = preference.operations(POOL, small_sampler, Preference(steps=1, draws=1))
    assert preference.operations(POOL, small_sampler, Preference(steps=3, draws=1)) == pytest.approx(3 * one)
    assert one < preference.operations(POOL, small_sampler, Preference(steps=1, draws=2)) < 2 * one
    elements = sum(x.size for x in jax.tree.leaves(small_sampler.params["layers"]) if x.ndim == 3)
    rows, length = 2 * 16, preference.block_of(POOL, small_sampler) + 3
    assert one > 3 * 2 * elements * rows * length  # three passes of two operations per weight and position


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("beta", 0.0), ("learning_rate", 0.0), ("pairs", 0), ("rank", 0)])
def test_what_cannot_be_set_is_named(name, value):
    with pytest.raises(ValueError, match=rf"config\.sampler\.preference\.{name} is {value}; allowed: "):
        dataclasses.replace(Preference(), **{name: value}).validate("sampler.preference")
