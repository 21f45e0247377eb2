"""Properties of the transformer that no reference model states: padding, chunks, dtypes, frozen weights, wrong sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import models
from dat_jax.models import transformer, weights
from dat_jax.models.config import ModelConfig

SIZES = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2}
KEY = jax.random.key(0)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing_and_makes_nothing_infinite(causal):
    config = ModelConfig(**SIZES, causal=causal)
    params = weights.initialize(KEY, config)
    tokens = np.array([[3, 7, 5, 1, 9, 2, 8, 4], [6, 6, 6, 6, 6, 6, 6, 6]])
    valid = np.zeros((2, 8), bool)
    valid[0, 3:6] = True  # padding on both sides; the second row is padding alone

    def score(e_BxTxD):
        logits = transformer.head(params, config, transformer.hidden(params, config, e_BxTxD, jnp.asarray(valid)))
        return jnp.where(valid[..., None], logits, 0).sum(), logits

    (_, padded), gradient = jax.value_and_grad(score, has_aux=True)(transformer.embed(params, config, tokens))
    alone = models.logits(params, config, tokens[:1, 3:6], jnp.ones((1, 3), bool))
    np.testing.assert_allclose(padded[0, 3:6], alone[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(padded).all()
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~valid] == 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_log_probabilities_equal_a_float64_softmax(tied):
    config = ModelConfig(**SIZES, tied_head=tied, logit_softcap=3.0)
    params = weights.initialize(KEY, config)
    h = jax.random.normal(KEY, (2, 7, 32))
    targets = jax.random.randint(KEY, (2, 7), 0, 50)
    matrix = params["embedding"].T if tied else params["head"]
    logits = 3 * np.tanh(np.asarray(h, np.float64) @ np.asarray(matrix, np.float64) / 3)
    exact = np.take_along_axis(logits, np.asarray(targets)[..., None], 2)[..., 0] - np.log(np.exp(logits).sum(-1))
    whole = jax.value_and_grad(lambda h: transformer.log_probs(params, config, h, targets).sum())(h)
    for chunk in (1, 3, 7, 100):
        found = transformer.log_probs(params, config, h, targets, chunk)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
        value, gradient = jax.value_and_grad(lambda h, c=chunk: transformer.log_probs(params, config, h, targets, c).sum())(h)
        np.testing.assert_allclose(value, whole[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, whole[1], rtol=1e-4, atol=1e-6)


def test_chunks_bound_the_logits_in_memory():
    config = ModelConfig(vocab_size=20_000, width=16, layers=1, heads=2)
    params = weights.abstract(config)
    h = jax.ShapeDtypeStruct((4, 64, 16), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporaries(chunk):
        def loss(h, params, targets):
            return transformer.log_probs(params, config, h, targets, chunk).sum()

        return jax.jit(jax.grad(loss)).lower(h, params, targets).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(0) > 4 * 64 * 20_000 * 4
    assert temporaries(8) < 0.4 * temporaries(0)


def test_bfloat16_products_keep_a_float32_residual_stream():
    config = ModelConfig(**SIZES, compute_dtype="bfloat16")
    params = weights.initialize(KEY, config, "bfloat16")
    tokens, everywhere = np.arange(10).reshape(2, 5), jnp.ones((2, 5), bool)
    e = transformer.embed(params, config, tokens)
    assert e.dtype == jnp.bfloat16
    assert transformer.hidden(params, config, e.astype(jnp.float32), everywhere).dtype == jnp.float32
    rough = models.logits(params, config, tokens, everywhere)
    exact = models.logits(jax.tree.map(lambda x: x.astype(jnp.float32), params), ModelConfig(**SIZES), tokens, everywhere)
    assert rough.dtype == jnp.float32
    assert np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_recomputing_layers_changes_memory_not_values():
    tokens, everywhere = np.arange(10).reshape(2, 5), jnp.ones((2, 5), bool)
    found = []
    for kept in ({"remat": False}, {"remat": True}, {"keep_products": True}):
        config = ModelConfig(**SIZES, **kept)
        params = weights.initialize(KEY, config)
        found.append(jax.grad(lambda p, c=config: (models.logits(p, c, tokens, everywhere) ** 2).sum())(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found[1:])


def test_initial_weights_have_the_tables_shapes_and_scales():
    config = ModelConfig(vocab_size=500, width=64, layers=3, heads=4, qkv_bias=True, qk_norm=True, post_norms=True)
    params = weights.initialize(KEY, config, "bfloat16")
    shapes = weights.abstract(config, "bfloat16")
    jax.tree.map(lambda x, want: np.testing.assert_equal((x.shape, x.dtype), (want.shape, want.dtype)), params, shapes)
    assert abs(float(params["layers"]["up"].astype(jnp.float32).std()) * 8 - 1) < 0.02
    assert float(params["layers"]["q_norm"].min()) == 1.0
    assert float(jnp.abs(params["layers"]["q_bias"]).max()) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"local_layers": (True,)}, "1 entries for 2 layers"),
        ({"local_layers": (True, False)}, "without a sliding_window"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SIZES | changes))
