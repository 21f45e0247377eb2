"""Sharded equals unsharded: losses, updated weights and sampled prompts after three steps on eight forced CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.config import defaults
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys
from dat_jax.methods import METHODS
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.training import loop

MODEL = ModelConfig(vocab_size=64, width=32, layers=2, heads=8, kv_heads=4, mlp_width=64, qkv_bias=True)
DIFFUSION = ModelConfig(vocab_size=64, width=32, layers=2, heads=4, causal=False, mask_token=63, model_type="llada")
# Two slices of four make the mesh "mixed" on CPUs; test_sharding.py has what slices change.
MESHES = {"fsdp": (1, 8, 1, 1), "tensor": (1, 1, 4, 1), "mixed": (2, 2, 2, 1)}


def conversations(rows, seed, response):
    draw = np.random.default_rng(seed)
    prompts = [list(draw.integers(1, 60, draw.integers(2, 8))) for _ in range(rows)]
    return lay_out(prompts, [[True] * len(p) for p in prompts], [list(draw.integers(1, 60, response)) for _ in prompts], 8, 8)


def configuration(rank):
    c = defaults()
    c.data.update({"prompt_length": 8, "response_length": 8, "adversarial_rows": 8, "utility_rows": 8})
    c.training.update({"steps": 10, "learning_rate": 1e-2, "warmup": 0.0})
    c.training.lora.update({"rank": rank, "dropout": 0.1})
    # Normalized steps: the sign of a gradient that is all rounding differs between two orders of summation.
    c.methods.cat.perturbation.update({"steps": 3, "radius": 0.5, "optimizer": "normalized", "keep_products": True})
    c.methods.lat.perturbation.update({"steps": 3, "radius": 0.5, "optimizer": "normalized", "sites": (0, 1), "absolute_radius": False})
    c.methods.lat.update({"updates": 2})
    c.methods.circuit_breakers.layers = (1,)
    c.methods.r2d2.update({"pool": 6, "tokens": 4, "steps": 2, "candidates": 4, "batch_size": 2, "topk": 8})
    return c


def initialized(seed, config, mesh):
    """Random weights, placed on the mesh."""
    place = weights.abstract(config, "float32", mesh)
    return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), weights.initialize(jax.random.key(seed), config), place)


def three_steps(sizes, rank, method="cat"):
    """The losses, the weights and what the method keeps after three steps on a mesh."""
    config, mesh, method = configuration(rank), sharding.make_mesh(*sizes), METHODS[method]
    own = method.read_settings(config)
    with jax.set_mesh(mesh):
        params = initialized(0, MODEL, mesh)
        model = Model(params, MODEL, None, "tiny")
        state = loop.initial_state(model, config.training, 0, mesh, method.memory(own, model, 0))
        step, frozen = loop.compiled_step(state), params if rank else None
        settings, adam = loop.step_config(model, config, method), loop.optimizer(config.training, method.updates(own))
        # Another model than the trained one: where both are the same, circuit breakers' gradient is all rounding, and Adam makes it large.
        reference = initialized(1, MODEL, mesh) if method.needs_reference(own) else None
        losses = []
        for index in range(3):
            rows = (conversations(8, 10 * index + part, 5 + part) for part in range(3))
            placed = loop.placed(mesh, Batch(*rows, behavior_B=np.arange(8, dtype=np.int32) % 5), (8, 8))
            state, metrics = step(state, frozen, placed, jax.random.key(1), config=settings, optimizer=adam, reference=reference)
            losses.append({name: float(value) for name, value in metrics.items()})
        split = [x for x in jax.tree.leaves(state.optimizer) if x.ndim and not x.sharding.is_fully_replicated]
        assert (len(split) > 0) == (mesh.size > 1)  # moments are split as their weights are
        return losses, jax.device_get(state.trainable), jax.device_get(state.memory)


@pytest.fixture(scope="module")
def alone():
    known = {}

    def run(*what):
        if what not in known:
            known[what] = three_steps((1, 1, 1, 1), *what)
        return known[what]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what"),
    [*((name, (4,)) for name in MESHES), ("mixed", (0,)), *(("mixed", (4, method)) for method in ("lat", "circuit_breakers", "r2d2"))],
)
def test_training(alone, name, what):
    losses, trained, kept = alone(*what)
    found, weights_, kept_ = three_steps(MESHES[name], *what)
    for a, b in zip(found, losses):
        for key in b:
            np.testing.assert_allclose(a[key], b[key], rtol=2e-4, atol=2e-5, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), weights_, trained)
    jax.tree.map(np.testing.assert_array_equal, kept_, kept)


@pytest.mark.slow
@pytest.mark.parametrize("remasking", ["random", "low_confidence"])
def test_sampled_prompts(remasking):
    rows = conversations(8, 3, 6)
    settings = InfillSettings(steps=4, remasking=remasking, forbidden=(0, 63))

    def sample(sizes):
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            params = initialized(2, DIFFUSION, mesh)
            batch = sharding.place_batch(mesh, rows, 8)
            keys = row_keys(jax.random.key(5), jnp.arange(8))
            done = infill(params, DIFFUSION, batch.tokens_BxT, batch.prompt_mask_BxT, batch.valid_BxT, keys, settings)
            return np.asarray(done.tokens_BxT)

    expected = sample((1, 1, 1, 1))
    for sizes in MESHES.values():
        np.testing.assert_array_equal(sample(sizes), expected)
