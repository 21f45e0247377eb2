"""The plain training loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.models.fitting import Saving, fit

RNG = np.random.default_rng(0)
WANTED = {"matrices": RNG.normal(size=(2, 4, 3)), "bias": RNG.normal(size=3)}


def loss(params, batch, key):
    del key
    out = jnp.einsum("lio,bi->lbo", params["matrices"], batch) + params["bias"][None, None]
    wanted = jnp.einsum("lio,bi->lbo", jnp.asarray(WANTED["matrices"]), batch) + jnp.asarray(WANTED["bias"])[None, None]
    return jnp.mean((out - wanted) ** 2)


def batches():
    rng = np.random.default_rng(1)
    while True:
        yield rng.normal(size=(16, 4)).astype(np.float32)


def start():
    return {"matrices": jnp.zeros((2, 4, 3)), "bias": jnp.zeros(3)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_finds_the_minimum_and_reports(optimizer):
    lines, initial = [], start()
    params = fit(loss, initial, batches(), steps=400, learning_rate=0.1, key=jax.random.key(0), report=lines.append, label="toy",
                 optimizer=optimizer, weight_decay=0.0)  # fmt: skip
    for name, wanted in WANTED.items():
        np.testing.assert_allclose(params[name], wanted, atol=0.02)
        np.testing.assert_array_equal(initial[name], 0.0)  # not donated
    assert len(lines) == 11 and "toy: step 400/400" in lines[-1] and "tokens/s" in lines[-1] and "s left" in lines[-1]


def test_one_compilation_and_a_key_per_step():
    traces, keys = [], []

    def counted(params, batch, key):
        traces.append(1)
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return loss(params, batch, key)

    fit(counted, start(), batches(), steps=7, learning_rate=0.01, key=jax.random.key(0), report=lambda line: None)
    jax.effects_barrier()
    assert len(traces) == 1
    assert len(set(keys)) == 7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_broken_training_goes_on_bit_for_bit(tmp_path, optimizer):
    lines: list[str] = []

    def run(saving, until=12):
        def interrupted():
            for number, batch in enumerate(batches()):
                if number == until:
                    raise KeyboardInterrupt
                yield batch

        def noisy(params, batch, key):
            return loss(params, batch + 0.1 * jax.random.normal(key, batch.shape), key)

        return fit(noisy, start(), interrupted(), steps=12, learning_rate=0.1, key=jax.random.key(0), report=lines.append,
                   optimizer=optimizer, saving=saving)  # fmt: skip

    whole = run(None)
    for every, until, after in ((1, 7, 7), (5, 7, 5), (5, 3, 0)):
        saving = Saving(tmp_path / f"{every}_{until}", every, {"data": "a"})
        with pytest.raises(KeyboardInterrupt):
            run(saving, until)
        lines.clear()
        jax.tree.map(np.testing.assert_array_equal, run(saving), whole)
        assert ("fit: goes on after step" in lines[0]) == (after > 0) and (not after or lines[0].endswith(f" {after}"))
        lines.clear()
        jax.tree.map(np.testing.assert_array_equal, run(saving), whole)  # at its end already
        assert lines == ["fit: goes on after step 12"]
        with pytest.raises(ValueError, match="of step 12 was made with data = 'a', now it is 'b'"):
            run(Saving(saving.folder, every, {"data": "b"}))


def test_faults_are_named():
    arguments = dict(learning_rate=0.01, key=jax.random.key(0), report=lambda line: None)
    with pytest.raises(ValueError, match="ended after 3 of 5 steps"):
        fit(loss, start(), itertools.islice(batches(), 3), steps=5, **arguments)
    with pytest.raises(ValueError, match="optimizer='sgd'"):
        fit(loss, start(), batches(), steps=5, optimizer="sgd", **arguments)
    with pytest.raises(ValueError, match="the loss is nan"):
        fit(lambda params, batch, key: loss(params, batch, key) * jnp.nan, start(), batches(), steps=5, **arguments)
