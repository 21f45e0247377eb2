"""Splash attention in interpret mode against the plain reference: forward and gradients, alone and under a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.models import splash
from dat_jax.models.attention import attend_xla
from dat_jax.models.config import ModelConfig

BASE = ModelConfig(vocab_size=8, width=128, layers=1, heads=4, kv_heads=2, head_dim=32)
CASES = {
    "causal": ({}, False),
    "bidirectional": ({"causal": False}, False),
    "soft-capped": ({"attention_softcap": 5.0, "query_scale": 0.3}, False),
    "sliding window": ({"sliding_window": 40, "attention_softcap": 5.0}, True),
    "global layer of a model with windows": ({"sliding_window": 40}, False),
    "bidirectional window": ({"sliding_window": 40, "causal": False}, True),
}


def inputs(rows, length):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (rows, length, 4, 32))
    k, v = (jax.random.normal(key, (rows, length, 2, 32)) for key in keys[1:3])
    start = np.array([0, 37, 5, 200])[:rows, None]  # left padding of the prompt, right padding of the response
    stop = np.array([length, length, length - 9, 230])[:rows, None]
    index = np.arange(length)[None]
    return q, k, v, jnp.asarray((index >= start) & (index < stop)), jax.random.normal(keys[3], q.shape)


def value_and_gradients(attend, q, k, v, valid, weight):
    """The output where it has meaning, and the gradients of a weighted sum of it."""

    def total(q, k, v):
        out = jnp.where(valid[:, :, None, None], attend(q, k, v, valid), 0.0)
        return jnp.sum(out * weight), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_reference(case):
    changes, local = CASES[case]
    config = dataclasses.replace(BASE, **changes)
    arguments = inputs(3, 256)
    expected = value_and_gradients(functools.partial(attend_xla, config=config, local=local), *arguments)
    found = value_and_gradients(functools.partial(splash.attend, config=config, local=local, interpret=True), *arguments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-5)


def test_traced_choice_of_the_window_and_a_mesh():
    config = ModelConfig(vocab_size=8, width=128, layers=1, heads=4, kv_heads=2, head_dim=32, sliding_window=40)
    arguments = inputs(4, 256)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    for local in (False, True):
        expected = value_and_gradients(functools.partial(attend_xla, config=config, local=local), *arguments)
        with jax.set_mesh(mesh):
            chosen = functools.partial(splash.attend, config=config, local=jnp.asarray(local), interpret=True)
            found = value_and_gradients(chosen, *arguments)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-5)


def test_lengths_and_meshes_that_do_not_fit_are_errors():
    q, k, v, valid, _ = inputs(3, 200)
    with pytest.raises(ValueError, match="multiple of 128, found 200 and 200"):
        splash.attend(q, k, v, valid, BASE)
    q, k, v, valid, _ = inputs(3, 128)
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=4)), pytest.raises(ValueError, match="3 rows must divide by data x fsdp"):
        jax.jit(functools.partial(splash.attend, config=BASE))(q, k, v, valid)
