"""Operations by formula against what compiled programs of a small model hold."""

import jax
import jax.numpy as jnp
import pytest

from dat_jax.compilation import costs, hlo
from dat_jax.models import decoding, flops, transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass

MODEL = ModelConfig(vocab_size=96, width=32, layers=3, heads=4, kv_heads=2, mlp_width=80, remat=False)


def counted(function, *arguments):
    return costs.cost(hlo.parse(jax.jit(function).lower(*arguments).compile().as_text()))


def test_forward_and_decoding():
    params = weights.abstract(MODEL)
    tokens, valid = jax.ShapeDtypeStruct((4, 16), jnp.int32), jax.ShapeDtypeStruct((4, 16), bool)
    found = counted(lambda p, t, v: transformer.logits(p, MODEL, t, v), params, tokens, valid)
    assert sum(found.flops.values()) == flops.forward(MODEL, Pass(4, 16, 16))
    e, keys = jax.ShapeDtypeStruct((4, 16, 32), jnp.float32), jax.random.split(jax.random.key(0), 4)
    found = counted(lambda p, e, v: decoding.generate(p, MODEL, e, v, keys, max_new_tokens=9), params, e, valid)
    assert sum(found.flops.values()) == pytest.approx(flops.generate(MODEL, 4, 16, 9), rel=0.01)
