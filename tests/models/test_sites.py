"""Perturbations and taps of the residual stream: a loop over the layers, torch's hidden states, finite differences, a mesh, one program."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import models, sharding
from dat_jax.models import lora as lora_lib
from dat_jax.models import transformer, weights
from dat_jax.models.attention import attend
from dat_jax.models.config import ModelConfig, RopeScaling

B, T, P, D, L = 8, 8, 5, 32, 3
GQA = ModelConfig(vocab_size=50, width=D, layers=L, heads=4, kv_heads=2)
GEMMA = dataclasses.replace(
    GQA, activation="gelu_tanh", norm_plus_one=True, post_norms=True, qk_norm=True, embedding_scale=D**0.5, sliding_window=3,
    local_layers=(True, False, True), rope_local_theta=100.0, rope_scaling=RopeScaling("linear", factor=4.0),
)  # fmt: skip
CASES = {"gqa": (GQA, False), "gemma": (GEMMA, False), "lora": (GQA, True), "gemma with lora": (GEMMA, True)}
EVERY = tuple(range(L + 1))
hidden = jax.jit(transformer.hidden, static_argnames=("config", "taps"))


def normal(seed, shape, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def made(config, adapted=False):
    """Parameters of a size at which every part matters, adapters (or None), embeddings, and rows with padding on both sides."""
    params = weights.initialize(jax.random.key(0), config)
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [leaf + normal(i, leaf.shape, 0.1) for i, leaf in enumerate(leaves)])
    lora = lora_lib.initialize(jax.random.key(1), config, 3, 6.0) if adapted else None
    lora = jax.tree.map(lambda x: x + normal(x.size, x.shape, 0.1), lora)
    e_BxTxD = transformer.embed(params, config, jax.random.randint(jax.random.key(2), (B, T), 0, config.vocab_size))
    valid_BxT = np.ones((B, T), bool)
    valid_BxT[1, :3] = valid_BxT[2, 6:] = False
    return params, lora, e_BxTxD, jnp.asarray(valid_BxT)


def added(e_BxTxD, delta_BxPxD):
    """Embeddings plus a perturbation of the first positions, by hand, in float32."""
    e_BxTxD, length = e_BxTxD.astype(jnp.float32), delta_BxPxD.shape[1]
    return jnp.concatenate([e_BxTxD[:, :length] + delta_BxPxD, e_BxTxD[:, length:]], axis=1)


def perturbations(sites, size=0.5):
    return {site: normal(100 + site, (B, P, D), size) for site in sites}


def by_loop(params, config, e_BxTxD, valid_BxT, lora, add):
    """The final hidden states and the stream at every site, layer by layer without a scan, from the module's own pieces."""
    h_BxTxD = e_BxTxD.at[:, :P].add(add.get(0, 0.0)) * (config.embedding_scale or 1.0)
    every, near = transformer.rotation_tables(config, transformer.positions(valid_BxT), T)
    streams = {}
    for layer in range(config.layers):
        if layer > 0:
            h_BxTxD = h_BxTxD.at[:, :P].add(add.get(layer, 0.0))
        streams[layer] = h_BxTxD
        own = jax.tree.map(lambda x, at=layer: x[at], params["layers"])
        factors, scale = ({}, 0.0) if lora is None else (jax.tree.map(lambda x, at=layer: x[at], lora.factors), lora.scale)
        local = bool(config.local_layers) and config.local_layers[layer]
        q, k, v = transformer.project_qkv(own, factors, config, h_BxTxD, near if local else every, scale)
        values = attend(q, k, v, valid_BxT, config, local)
        h_BxTxD = transformer.finish_layer(own, factors, config, h_BxTxD, values, scale)
    streams[config.layers] = h_BxTxD
    return transformer.norm(h_BxTxD, params["final_norm"], config), streams


def close(found, expected, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(np.abs(b).max())), found, expected)


# What is added, and where.


@pytest.mark.parametrize(("config", "dtype"), [(GQA, "float32"), (GEMMA, "bfloat16")])
def test_site_0_is_the_embeddings_in_float32_before_they_are_scaled(config, dtype):
    params, _, e, valid = made(config)
    e, delta = e.astype(dtype), perturbations([0])
    found, streams = hidden(params, config, e, valid, add=delta, taps=(0,))
    by_hand = np.array(e, np.float32)
    by_hand[:, :P] += delta[0]
    np.testing.assert_array_equal(streams[0], by_hand * np.float32(config.embedding_scale or 1.0))
    np.testing.assert_array_equal(found, hidden(params, config, jnp.asarray(by_hand), valid))
    np.testing.assert_array_equal(found, hidden(params, config, added(e, delta[0]), valid))
    assert found.dtype == streams[0].dtype == jnp.float32


def test_zeros_change_nothing():
    params, _, e, valid = made(GEMMA)
    zeros = jax.tree.map(jnp.zeros_like, perturbations(range(L)))
    close(hidden(params, GEMMA, e, valid, add=zeros), hidden(params, GEMMA, e, valid), 1e-6)


@pytest.mark.parametrize(("case", "sites"), [("gqa", (2,)), *((case, (0, 1, 2)) for case in CASES)])
def test_sites_equal_a_loop_over_the_layers(case, sites):
    config, adapted = CASES[case]
    params, lora, e, valid = made(config, adapted)
    add = perturbations(sites)
    expected, streams = by_loop(params, config, e, valid, lora, add)
    close(hidden(params, config, e, valid, lora, add, taps=EVERY), (expected, streams))
    without, _ = by_loop(params, config, e, valid, lora, {})
    assert np.abs(expected - without).max() > 0.1  # what is added matters


def test_deeper_sites_keep_the_streams_dtype():
    params, _, e, valid = made(GQA)
    rough = e.astype(jnp.bfloat16)
    for sites, dtype in (((2,), jnp.bfloat16), ((0, 2), jnp.float32)):
        h, streams = hidden(params, GQA, rough, valid, add=perturbations(sites), taps=EVERY)
        assert {h.dtype, *(x.dtype for x in streams.values())} == {jnp.dtype(dtype)}
    _, streams = hidden(params, GQA, rough, valid, add=perturbations([2]), taps=(2,))
    _, plain = hidden(params, GQA, rough, valid, taps=(2,))
    expected = plain[2].at[:, :P].add(perturbations([2])[2].astype(jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(streams[2], np.float32), np.asarray(expected, np.float32))


# What is read.


@pytest.mark.parametrize("name", ["llama3", "gemma2"])
def test_taps_equal_transformers_hidden_states(tiny, name):
    model, folder = tiny(name)
    import torch

    ours = models.load(str(folder))
    tokens, valid = np.random.default_rng(0).integers(0, ours.config.vocab_size, (3, 11)), np.ones((3, 11), bool)
    valid[1, :4] = valid[2, 8:] = False
    positions = torch.tensor(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=torch.tensor(valid.astype(np.int64)), position_ids=positions,
                    use_cache=False, output_hidden_states=True)  # fmt: skip
    theirs = [x.numpy() for x in out.hidden_states]
    sites = tuple(range(ours.config.layers + 1))
    e_BxTxD = transformer.embed(ours.params, ours.config, tokens)
    final, streams = hidden(ours.params, ours.config, e_BxTxD, jnp.asarray(valid), taps=sites)
    assert tuple(streams) == sites
    assert len(theirs) == len(sites)
    last = transformer.norm(streams[sites[-1]], ours.params["final_norm"], ours.config)  # theirs is after the final norm
    for found, expected in zip([*(streams[site] for site in sites[:-1]), last, final], [*theirs, theirs[-1]]):
        assert np.abs(found - expected)[valid].max() <= 1e-5 * np.abs(expected[valid]).max()


def test_taps_are_those_asked_for_and_none_is_the_hidden_states_alone():
    params, _, e, valid = made(GQA)
    _, streams = hidden(params, GQA, e, valid, taps=EVERY)
    for taps in ((0,), (L, 1, 1)):
        h, some = hidden(params, GQA, e, valid, taps=taps)
        assert set(some) == set(taps)
        close(some, {site: streams[site] for site in taps}, 1e-6)
        close(h, hidden(params, GQA, e, valid), 1e-6)
    assert isinstance(hidden(params, GQA, e, valid, taps=()), jax.Array)


# Gradients.


def probe(add, params, config, lora, e, valid):
    """A number that every perturbation, tap and valid position matters to; and the taps."""
    h, streams = transformer.hidden(params, config, e, valid, lora, add, taps=(0, 2, L))
    parts = [jnp.where(valid[..., None], jnp.sin(x) * normal(site, x.shape), 0.0) for site, x in {7: h, **streams}.items()]
    return sum(part.mean() for part in parts), streams


@pytest.mark.parametrize("config", [GQA, GEMMA])
def test_gradients_of_perturbations_equal_finite_differences(config):
    params, lora, e, valid = made(config, adapted=True)
    add = perturbations(range(L), 0.2)
    value = jax.jit(probe, static_argnums=2)
    gradient, _ = jax.jit(jax.grad(probe, has_aux=True), static_argnums=2)(add, params, config, lora, e, valid)
    for site in add:
        h, found, expected = 3e-4, [], []
        for seed in range(5):
            direction = normal(seed, (B, P, D))
            ends = [value(add | {site: add[site] + sign * h * direction}, params, config, lora, e, valid)[0] for sign in (1, -1)]
            expected.append((ends[0] - ends[1]) / (2 * h))
            found.append(jnp.sum(gradient[site] * direction))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-4)  # float32 rounds the differences
        assert np.abs(expected).max() > 5e-3
        assert np.all(gradient[site][1, :3] == 0)  # padding reaches nothing


def test_recomputation_changes_no_gradient():
    params, _, e, valid = made(GQA)
    found = []
    for kept in ({"remat": False}, {"remat": True}, {"keep_products": True}):
        gradient = jax.jit(jax.grad(probe, argnums=(0, 1), has_aux=True), static_argnums=2)
        found.append(gradient(perturbations([0, 2]), params, dataclasses.replace(GQA, **kept), None, e, valid)[0])
    close(found[1], found[0])
    close(found[2], found[0])


# The program.


def equations(jaxpr, name):
    """Every equation of a primitive in a jaxpr and those below it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for below in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(getattr(below, "jaxpr", below), name)


def traced(config, add=None, taps=(), adapted=False):
    params, lora, e, valid = made(config, adapted)
    return jax.make_jaxpr(lambda add: transformer.hidden(params, config, e, valid, lora, add, taps))(add).jaxpr


@pytest.mark.parametrize(
    ("sites", "taps", "lengths"),
    [((), (), [3]), ((0,), (), [3]), ((0,), (0, L), [3]), ((2,), (), [2, 1]), ((0, 2), (2, 2), [2, 1]), ((1,), (1, 2, 3), [1, 1, 1])],
)
@pytest.mark.parametrize("keep", [False, True])
def test_one_scan_from_site_to_site_each_recomputed_in_the_same_way(sites, taps, lengths, keep):
    scans = list(equations(traced(dataclasses.replace(GQA, keep_products=keep), perturbations(sites), taps, adapted=True), "scan"))
    assert [scan.params["length"] for scan in scans] == lengths
    for scan in scans:
        (remat,) = equations(scan.params["jaxpr"].jaxpr, "remat2")
        assert (remat.params["policy"] is not None, remat.params["prevent_cse"]) == (keep, False)


@pytest.mark.parametrize(("kept", "recomputed"), [({"remat": False}, 0), ({"remat": True}, 8), ({"keep_products": True}, 2)])
def test_every_segment_multiplies_as_often_as_the_one_scan(kept, recomputed):
    """A layer has 7 linear maps and 2 products of the attention; the last needs no recomputation, and kept are the linear maps."""
    config = dataclasses.replace(GQA, **kept)
    params, _, e, valid = made(config)

    def products(sites):
        def loss(add, params):
            return (transformer.hidden(params, config, e, valid, add=add) ** 2).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(perturbations(sites), params).jaxpr
        return [len(list(equations(scan.params["jaxpr"].jaxpr, "dot_general"))) for scan in equations(jaxpr, "scan")]

    assert products((0,)) == [9, 18 + recomputed]
    assert products((0, 1, 2)) == [9] * 3 + [18 + recomputed] * 3


@pytest.mark.parametrize(
    ("case", "kept"), [("gqa", {"remat": False}), ("gemma", {}), ("lora", {"keep_products": True}), ("gemma with lora", {})]
)
def test_without_sites_the_program_is_that_of_one_plain_scan(case, kept):
    """The reference is `hidden` without sites, written out; the texts of value and gradient are equal to the letter."""
    config = dataclasses.replace(CASES[case][0], **kept)
    params, lora, e, valid = made(config, CASES[case][1])

    def plain(params, lora, e_BxTxD):
        h_BxTxD = transformer.scale_embeddings(config, e_BxTxD)
        rotations = transformer.rotation_tables(config, transformer.positions(valid), T)

        def body(h_BxTxD, layer):
            own, factors, local = layer
            q, k, v = transformer.project_qkv(own, factors, config, h_BxTxD, transformer.select(local, rotations), scale)
            return transformer.finish_layer(own, factors, config, h_BxTxD, attend(q, k, v, valid, config, local), scale), None

        scale = 0.0 if lora is None else lora.scale
        if config.remat:
            policy = jax.checkpoint_policies.save_only_these_names("product") if config.keep_products else None
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        h_BxTxD, _ = jax.lax.scan(body, h_BxTxD, transformer.stacked(params, config, lora))
        return transformer.norm(h_BxTxD, params["final_norm"], config).astype(h_BxTxD.dtype)

    def text(function, *arguments):
        def loss(*arguments):
            return (function(*arguments) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss)).lower(*arguments).as_text()

    expected = text(plain, params, lora, e)
    assert expected.count("stablehlo.while") == 2  # there and back
    for options in ({}, {"add": {}, "taps": ()}):
        assert text(lambda params, lora, e, o=options: transformer.hidden(params, config, e, valid, lora, **o), params, lora, e) == expected
    delta = perturbations([0])[0]
    by_hand = text(lambda params, lora, e, delta: plain(params, lora, added(e, delta)), params, lora, e, delta)
    at_site = text(lambda params, lora, e, delta: transformer.hidden(params, config, e, valid, lora, {0: delta}), params, lora, e, delta)
    assert at_site == by_hand


@pytest.fixture(scope="module")
def alone():
    """The jitted value and gradient of `probe`, its arguments, and what one device gives."""
    params, _, e, valid = made(GEMMA)
    run = jax.jit(lambda add, params, e, valid: jax.value_and_grad(probe, has_aux=True)(add, params, GEMMA, None, e, valid))
    arguments = perturbations([0, 2]), params, e, valid
    return run, arguments, jax.device_get(run(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 4, 1), (2, 2, 2, 1)])
def test_a_mesh_gives_what_one_device_gives(alone, sizes):
    run, (add, params, e, valid), expected = alone
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), params, weights.abstract(GEMMA, "float32", mesh))
        add, e, valid = jax.tree.map(lambda x: jax.device_put(x, sharding.batch_sharding(mesh, x.shape)), (add, e, valid))
        found = run(add, params, e, valid)
        wanted = sharding.named_sharding(mesh, ("batch", "positions", None), (B, T, D))
    (_, streams), _ = found
    assert all(stream.sharding.is_equivalent_to(wanted, 3) for stream in streams.values())
    close(jax.device_get(found), expected, 1e-4)


@pytest.mark.parametrize(
    ("add", "taps", "message"),
    [
        ((L,), (), "add names site 3; allowed for a model of 3 layers: 0 to 2"),
        ((0, -1), (), "add names site -1; allowed for a model of 3 layers: 0 to 2"),
        ((), (L + 1,), "taps names site 4; allowed for a model of 3 layers: 0 to 3"),
        ((1,), (2, -1), "taps names site -1; allowed for a model of 3 layers: 0 to 3"),
        ((), ("last",), "taps names site 'last'; allowed for a model of 3 layers: 0 to 3"),
    ],
)
def test_a_site_that_is_not_there_is_an_error(add, taps, message):
    params, _, e, valid = made(GQA)
    add = {site: jnp.zeros((B, P, D)) for site in add}
    for function in (transformer.hidden, hidden):
        with pytest.raises(ValueError, match=message):
            function(params, GQA, e, valid, add=add, taps=taps)
