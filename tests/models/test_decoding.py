"""Generation against transformers' generate and against decoding without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import models
from dat_jax.models import decoding, transformer, weights
from dat_jax.models.config import ModelConfig

KEY = jax.random.key(0)
NEW = 8


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma2", "gemma3", "phi3"])
def test_greedy_equals_transformers_generate(tiny, name):
    """Six prompts of different lengths, left-padded, through windows shorter than the text."""
    model, folder = tiny(name)
    import torch

    ours = models.load(str(folder))
    tokens = np.random.default_rng(0).integers(1, 96, (6, 7))
    valid = np.arange(7)[None] >= np.array([0, 1, 2, 3, 5, 6])[:, None]
    with torch.no_grad():
        reference = model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(valid.astype(np.int64)), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    rows = transformer.embed(ours.params, ours.config, tokens)
    found = decoding.generate(ours.params, ours.config, rows, jnp.asarray(valid), KEY, max_new_tokens=NEW)
    np.testing.assert_array_equal(found, reference.numpy()[:, 7:])
    assert len(np.unique(found)) > 5


SIZES = {"vocab_size": 80, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2}
CONFIG = ModelConfig(**SIZES, sliding_window=4, local_layers=(True, False), qk_norm=True, rope_local_theta=100.0)


@functools.partial(jax.jit, static_argnums=1)
def next_logits(params, config, e_BxTxD, valid_BxT, lengths_B):
    h_BxTxD = transformer.hidden(params, config, e_BxTxD, valid_BxT)
    return transformer.head(params, config, h_BxTxD[jnp.arange(h_BxTxD.shape[0]), lengths_B - 1])


def without_cache(params, config, rows):
    """Greedy continuation of embedding rows (a list of arrays of different lengths), one full pass per token, padded on the right."""
    S = max(len(row) for row in rows) + NEW
    e_BxSxD = np.zeros((len(rows), S, config.width), np.float32)
    lengths_B = np.array([len(row) for row in rows])
    for b, row in enumerate(rows):
        e_BxSxD[b, : len(row)] = row
    out = []
    for _ in range(NEW):
        token_B = np.argmax(next_logits(params, config, e_BxSxD, np.arange(S)[None] < lengths_B[:, None], lengths_B), axis=-1)
        e_BxSxD[np.arange(len(rows)), lengths_B] = params["embedding"][token_B]
        lengths_B = lengths_B + 1
        out.append(token_B)
    return np.stack(out, axis=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_equals_cache_free_from_perturbed_embeddings(side):
    params = weights.initialize(KEY, CONFIG)
    lengths = [6, 4, 1]
    rows = [0.3 * np.asarray(jax.random.normal(jax.random.key(n), (n, 32))) for n in lengths]
    e_BxPxD, valid_BxP = np.full((3, 6, 32), 9.0, np.float32), np.zeros((3, 6), bool)
    for b, row in enumerate(rows):
        place = slice(6 - len(row), 6) if side == "left" else slice(0, len(row))
        e_BxPxD[b, place], valid_BxP[b, place] = row, True
    found = decoding.generate(params, CONFIG, jnp.asarray(e_BxPxD), jnp.asarray(valid_BxP), KEY, max_new_tokens=NEW)
    np.testing.assert_array_equal(found, without_cache(params, CONFIG, rows))


DEEP = ModelConfig(**(SIZES | {"layers": 3}), sliding_window=4, local_layers=(True, False, True), qk_norm=True, embedding_scale=2.0)
hidden = jax.jit(transformer.hidden, static_argnums=1, static_argnames="taps")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sites", [(0,), (1,), (0, 2)])
def test_cached_equals_cache_free_under_perturbations_of_the_prompts_stream(side, sites):
    """Prompts of several lengths; what is added at padding must reach nothing, and the new tokens' own streams get nothing."""
    params, (B, P, lengths) = weights.initialize(KEY, DEEP), (3, 6, [6, 4, 2])
    e_BxPxD, valid_BxP = np.full((B, P, 32), 9.0, np.float32), np.zeros((B, P), bool)
    add = {site: np.full((B, P, 32), -7.0, np.float32) for site in sites}
    e_BxSxD, own = np.zeros((B, P + NEW, 32), np.float32), {site: np.zeros((B, P, 32), np.float32) for site in sites}
    for b, length in enumerate(lengths):
        place, end = slice(P - length, P) if side == "left" else slice(0, length), slice(P - length, P)
        valid_BxP[b, place], e_BxPxD[b, place] = True, 0.3 * np.asarray(jax.random.normal(jax.random.key(b), (length, 32)))
        e_BxSxD[b, end] = e_BxPxD[b, place]
        for site in sites:
            add[site][b, place] = own[site][b, end] = np.asarray(jax.random.normal(jax.random.key(10 * site + b + 100), (length, 32)))
    add, valid = {site: jnp.asarray(x) for site, x in add.items()}, jnp.asarray(valid_BxP)
    found = decoding.generate(params, DEEP, jnp.asarray(e_BxPxD), valid, KEY, add, max_new_tokens=NEW)
    expected = []
    for length in range(P, P + NEW):
        valid_BxS = (np.arange(P + NEW)[None] >= P - np.array(lengths)[:, None]) & (np.arange(P + NEW) < length)[None]
        h_BxSxD = hidden(params, DEEP, e_BxSxD, valid_BxS, add=own)
        expected.append(np.argmax(transformer.head(params, DEEP, h_BxSxD[:, length - 1]), axis=-1))
        e_BxSxD[:, length] = params["embedding"][expected[-1]]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    assert np.any(found != decoding.generate(params, DEEP, jnp.asarray(e_BxPxD), valid, KEY, max_new_tokens=NEW), axis=1).all()


@pytest.mark.parametrize("sites", [(0,), (1,), (0, 2)])
def test_the_cache_holds_keys_and_values_of_the_perturbed_stream(sites):
    """One more token read through the cache has the hidden state of a whole pass, in numbers and not only in its likeliest token."""
    params, valid = weights.initialize(KEY, DEEP), jnp.ones((2, 6), bool)
    e_BxSxD = jax.random.normal(jax.random.key(1), (2, 6, 32))
    add = {site: jax.random.normal(jax.random.key(site), (2, 5, 32)) for site in sites}
    last, cache = decoding.prefill(params, DEEP, e_BxSxD[:, :5], valid[:, :5], 1, add)
    after, _ = decoding.step(params, DEEP, e_BxSxD[:, 5:], jnp.full(2, 5), valid, 5, cache)
    expected = hidden(params, DEEP, e_BxSxD, valid, add=add)
    np.testing.assert_allclose(last, expected[:, 4], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(after, expected[:, 5], rtol=2e-5, atol=2e-5)
    assert np.abs(after - hidden(params, DEEP, e_BxSxD, valid)[:, 5]).max() > 0.1


def test_after_a_stop_token_only_padding_follows():
    params = weights.initialize(KEY, CONFIG)
    rows = jax.random.normal(KEY, (4, 3, 32))
    everywhere = jnp.ones((4, 3), bool)
    free = np.asarray(decoding.generate(params, CONFIG, rows, everywhere, KEY, max_new_tokens=NEW))
    stops = (int(free[0, 2]), int(free[1, 0]))
    found = np.asarray(decoding.generate(params, CONFIG, rows, everywhere, KEY, max_new_tokens=NEW, stop_tokens=stops, pad_token=79))
    for before, after in zip(free, found, strict=True):
        hits = np.flatnonzero(np.isin(before, stops))
        end = hits[0] + 1 if len(hits) else NEW
        np.testing.assert_array_equal(after[:end], before[:end])
        assert (after[end:] == 79).all()


def test_sampled_frequencies_follow_the_tempered_nucleus():
    """First tokens of 4000 equal rows against the probabilities of a brute-force nucleus in float64."""
    config = ModelConfig(vocab_size=12, width=16, layers=1, heads=2)
    params = weights.initialize(KEY, config)
    row = jax.random.normal(jax.random.key(3), (1, 2, 16))
    h_BxTxD = transformer.hidden(params, config, row, jnp.ones((1, 2), bool))
    logits = np.asarray(transformer.head(params, config, h_BxTxD)[0, -1], np.float64) / 0.8
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    kept, total = np.zeros(12), 0.0
    for token in np.argsort(-shares):
        kept[token] = shares[token]
        total += shares[token]
        if total >= 0.85:
            break
    assert 2 < np.count_nonzero(kept) < 12
    rows, everywhere = jnp.repeat(row, 4000, axis=0), jnp.ones((4000, 2), bool)
    found = decoding.generate(params, config, rows, everywhere, jax.random.split(KEY, 4000), max_new_tokens=1, temperature=0.8, top_p=0.85)
    frequencies = np.bincount(np.asarray(found)[:, 0], minlength=12) / 4000
    assert (frequencies[kept == 0] == 0).all()
    assert np.abs(frequencies - kept / kept.sum()).max() < 4 * np.sqrt(0.25 / 4000)


def test_what_cannot_be_generated_is_an_error():
    config = ModelConfig(vocab_size=12, width=16, layers=1, heads=2, causal=False)
    rows, everywhere = jnp.zeros((1, 2, 16)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="not a causal model"):
        decoding.generate(weights.initialize(KEY, config), config, rows, everywhere, KEY, max_new_tokens=1)
    with pytest.raises(ValueError, match="add names site 2; allowed for a model of 2 layers: 0 to 1"):
        decoding.generate(
            weights.initialize(KEY, CONFIG), CONFIG, jnp.zeros((1, 2, 32)), everywhere, KEY, {2: jnp.zeros((1, 2, 32))}, max_new_tokens=1
        )
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        decoding.generate(weights.initialize(KEY, CONFIG), CONFIG, rows, everywhere, KEY, max_new_tokens=0)
