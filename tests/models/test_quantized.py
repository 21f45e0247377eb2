"""Quantized weights: the quantizers against closed forms, and every program against the same one on the dequantized weights."""

import dataclasses
import itertools
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import stats

from dat_jax import models, sharding
from dat_jax.checkpoints import TrainState
from dat_jax.config import defaults, validate
from dat_jax.data import manifest
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys
from dat_jax.methods import cat
from dat_jax.models import huggingface, lora, quantized, transformer, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.models.quantized import Quantized
from dat_jax.stations import export
from dat_jax.stations.inputs import Inputs
from dat_jax.training import loop
from dat_jax.training.perturbation import Perturbation
from dat_jax.training.step import StepConfig, train_step

CONFIG = ModelConfig(vocab_size=40, width=128, layers=2, heads=2, kv_heads=1, mlp_width=256, remat=False)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 8))
KINDS = quantized.KINDS
logits = jax.jit(transformer.logits, static_argnums=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in full precision, as a folder."""
    path = tmp_path_factory.mktemp("quantized") / "model"
    models.save(Model(weights.initialize(jax.random.key(0), CONFIG), CONFIG, None), str(path))
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    """The folder, read in each kind."""
    return {kind: dataclasses.replace(models.load(str(folder), dtype=kind), config=CONFIG) for kind in KINDS}


def plain(params):
    """The same parameters with arrays in place of quantized weights, an update added to them."""

    def array(weight):
        if not isinstance(weight, Quantized):
            return weight
        return weight.matrix(jnp.float32) + (0 if weight.a is None else weight.a @ weight.b)

    return {**params, "layers": {name: array(weight) for name, weight in params["layers"].items()}}


def adapters(rank=3):
    """Factors that change the model."""
    factors = lora.initialize(jax.random.key(1), CONFIG, rank, 6.0)
    return jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), factors)


def test_nf4_values_are_the_quantiles_of_the_paper():
    """QLoRA, appendix E: quantiles of the normal distribution on each side of zero, scaled to 1; with bitsandbytes' offset."""
    offset = 0.9677083
    upper, lower = (stats.norm.ppf(np.linspace(offset, 0.5, count)[:-1]) for count in (9, 8))
    values = np.sort(np.concatenate([upper, [0.0], -lower]))
    np.testing.assert_allclose(quantized.NF4, values / values.max(), atol=1e-6)


def test_nf4_takes_the_nearest_value():
    matrix = np.random.default_rng(1).normal(size=(192, 5)).astype(np.float32)
    matrix[64:128, 2] = 0.0
    codes, scales = quantized.quantize(matrix, "nf4")
    absmax = np.abs(matrix.reshape(3, 64, 5)).max(axis=1)
    np.testing.assert_array_equal(scales, absmax.astype(scales.dtype))
    values = np.asarray(quantized.NF4, np.float32)
    steps = scales.astype(np.float32)[:, None, :, None] * values  # what each number may become
    choice = np.abs(matrix.reshape(3, 64, 5)[..., None] - steps).argmin(axis=-1)
    nearest = np.take_along_axis(steps, choice[..., None], axis=-1)[..., 0].reshape(192, 5)
    found = Quantized(jnp.asarray(codes), jnp.asarray(scales), kind="nf4").matrix(jnp.float32)
    np.testing.assert_array_equal(found, nearest)
    assert codes.nbytes == 192 * 5 // 2 and not np.asarray(found)[64:128, 2].any()
    # Half of the widest gap between two values, -1 and -0.696, and what a block's greatest loses in bfloat16.
    error = np.abs(np.asarray(found) - matrix).reshape(3, 64, 5).max(axis=1)
    assert (error <= absmax * ((values[1] - values[0]) / 2 + 2**-8)).all()


def test_int8_is_off_by_half_a_step_at_most():
    matrix = np.random.default_rng(2).normal(size=(70, 6)).astype(np.float32) * np.float32([1e-3, 1, 10, 1e4, 1, 1])
    matrix[:, 4] = 0.0
    codes, scales = quantized.quantize(matrix, "int8")
    np.testing.assert_allclose(scales[0], np.abs(matrix).max(axis=0) / 127, rtol=1e-6)
    found = np.asarray(Quantized(jnp.asarray(codes), jnp.asarray(scales)).matrix(jnp.float32))
    assert (np.abs(found - matrix) <= scales / 2 * (1 + 1e-5)).all()
    assert np.abs(codes).max(axis=0).tolist() == [127, 127, 127, 127, 0, 127]


def test_reading_quantizes_what_the_files_hold(folder, loaded):
    exact = models.load(str(folder)).params
    for kind, model in loaded.items():
        for name, weight in model.params["layers"].items():
            if name not in lora.LINEAR:
                np.testing.assert_array_equal(weight, exact["layers"][name])
                continue
            expected = quantized.of_stack(exact["layers"][name], kind)
            np.testing.assert_array_equal(weight.codes, expected.codes)
            np.testing.assert_array_equal(weight.scales, expected.scales)
        np.testing.assert_array_equal(model.params["embedding"], exact["embedding"])
        shapes = weights.abstract(CONFIG, kind)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), model.params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_a_folder_of_several_files_and_of_fused_matrices_is_the_same(folder, loaded, tmp_path):
    """Files of a few tensors each with an index, and Phi-3's layout: q, k and v in one tensor, gate and up in another."""
    models.save(models.load(str(folder)), str(tmp_path / "many"), shard_bytes=1 << 17)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    fused = {}
    (tmp_path / "fused").mkdir()
    for file in files:
        fused |= load_file(file)
    for layer in range(CONFIG.layers):
        for home, module, parts in (("self_attn", "qkv_proj", "qkv"), ("mlp", "gate_up_proj", ("gate", "up"))):
            place = f"model.layers.{layer}.{home}."
            fused[place + f"{module}.weight"] = np.concatenate([fused.pop(f"{place}{part}_proj.weight") for part in parts])
    save_file(fused, tmp_path / "fused" / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text()) | {"model_type": "phi3", "pad_token_id": 0}
    (tmp_path / "fused" / "config.json").write_text(json.dumps(fields))
    assert len(files) > 4
    for kind, model in loaded.items():
        for name in ("many", "fused"):
            jax.tree.map(np.testing.assert_array_equal, models.load(str(tmp_path / name), dtype=kind).params, model.params)


def test_a_host_never_holds_the_whole_model(tmp_path):
    config = dataclasses.replace(CONFIG, layers=24)
    models.save(Model(weights.initialize(jax.random.key(0), config), config, None), str(tmp_path / "deep"))
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(weights.abstract(config)))
    for kind, share in (("int8", 0.35), ("nf4", 0.25)):
        tracemalloc.start()
        models.load(str(tmp_path / "deep"), dtype=kind)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < share * whole, kind


@jax.jit
def run(params, e, factors):
    """Logits, and the gradient of a function of them with respect to the embeddings."""

    def total(e):
        found = transformer.head(params, CONFIG, transformer.hidden(params, CONFIG, e, jnp.ones(e.shape[:2], bool), factors))
        return jnp.sum(jnp.sin(found)), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(e)
    return found, gradient


@pytest.mark.parametrize("kind", KINDS)  # a program of each kind
def test_logits_and_gradients_are_those_of_the_dequantized_weights(loaded, kind):
    params, factors = loaded[kind].params, adapters()
    e = transformer.embed(params, CONFIG, TOKENS)
    wanted = run(plain(params), e, factors)
    merged = lora.merge(params, factors)
    assert merged["layers"]["q"].codes is params["layers"]["q"].codes  # nothing is written out
    for found in (run(params, e, factors), run(merged, e, None)):
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5 * np.abs(two).max())
    back = lora.merge(merged, factors.replace(scale=-factors.scale))  # on top of what is merged already
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), plain(back), plain(params))
    full = run(weights.initialize(jax.random.key(0), CONFIG), e, factors)  # the program of `wanted`
    assert np.abs(full[0] - wanted[0]).max() > 1e-3  # the quantizer did something


@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_give_what_one_gives(folder, loaded, kind):
    for shape, name in (((1, 2, 1), "q"), ((1, 1, 2), "o")):  # whose inputs are split
        mesh = sharding.make_mesh(*shape)
        split = models.load(str(folder), mesh=mesh, dtype=kind)
        codes = split.params["layers"][name].codes
        assert codes.sharding.shard_shape(codes.shape)[1] == codes.shape[1] // 2
        jax.tree.map(np.testing.assert_array_equal, split.params, loaded[kind].params)
        if shape[1] == (1 if kind == "nf4" else 2):  # one forward of each: they are compiled
            with jax.set_mesh(mesh):
                found = logits(split.params, CONFIG, TOKENS, np.ones(TOKENS.shape, bool))
            wanted = logits(loaded[kind].params, CONFIG, TOKENS, np.ones(TOKENS.shape, bool))
            np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_block_of_nf4_is_never_split():
    mesh = sharding.make_mesh(1, 4, 1)  # 128 inputs are two blocks, which four devices cannot share
    found = weights.abstract(CONFIG, "nf4", mesh)["layers"]["q"]
    assert found.codes.sharding == found.scales.sharding
    assert found.codes.sharding.shard_shape(found.codes.shape)[1] == 64


@pytest.mark.parametrize(("kind", "parts", "tensor"), [("int8", 1, 1), ("nf4", 2, 2)])
def test_a_train_step_is_that_on_the_dequantized_weights(folder, kind, parts, tensor, monkeypatch):
    """The whole batch on one device, and in parts on two that share each matrix, with the products that a TPU makes of few rows."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays))
    monkeypatch.setattr(quantized, "PART", 2048)
    P, R = 4, 3
    batch = Batch(
        away=lay_out([[1, 5, 7], [1, 3]], [[True] * 3, [True] * 2], [[4, 5], [9, 9]], P, R),
        toward=lay_out([[1, 5, 7], [1, 3]], [[True] * 3, [True] * 2], [[2, 2], [3, 2]], P, R),
        utility=lay_out([[1, 8], [3]], [[False] * 2, [False]], [[5], [6, 7]], P, R),
    )
    settings = cat.Settings(perturbation=Perturbation(steps=2, radius=0.5))
    step = StepConfig(model=CONFIG, inner=cat.inner, loss=cat.loss, settings=settings, prompt_length=P, parts=parts)
    rule, factors, run = optax.sgd(0.5), adapters(), jax.jit(train_step, static_argnames=("config", "optimizer"))
    mesh = sharding.make_mesh(1, 1, tensor)
    with jax.set_mesh(mesh):
        params = models.load(str(folder), mesh=mesh, dtype=kind).params
        state = TrainState(jnp.zeros((), jnp.int32), factors, rule.init(factors))
        found, told = run(state, params, batch, jax.random.key(0), config=step, optimizer=rule)
        wanted, expected = run(state, plain(params), batch, jax.random.key(0), config=step, optimizer=rule)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), wanted.trainable, factors)
    assert max(jax.tree.leaves(moved)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.trainable, wanted.trainable)
    np.testing.assert_allclose(told["loss/total"], expected["loss/total"], rtol=1e-5)


def test_infilling_with_a_quantized_sampler(golden):
    """LLaDA's recorded checkpoint in int8 writes what its dequantized weights write."""
    model = models.load(str(golden / "llada_tiny" / "mha"), dtype="int8")
    tokens = np.array([[5, 6, 510, 510, 9, 11]])
    how, keys = InfillSettings(steps=2, block_length=2, temperature=0.0), row_keys(jax.random.key(0), jnp.arange(1))
    mask, valid = tokens == 510, np.ones(tokens.shape, bool)
    one, two = (infill(params, model.config, tokens, valid, mask, keys, how, 2) for params in (model.params, plain(model.params)))
    np.testing.assert_array_equal(one.tokens_BxT, two.tokens_BxT)
    assert not (np.asarray(one.tokens_BxT) == 510).any()


def test_what_was_trained_on_all_weights_is_no_quantized_model(loaded):
    exact = weights.initialize(jax.random.key(3), CONFIG)
    assert loop.merged(loaded["nf4"], exact, None).params["layers"]["q"].dtype == jnp.float32
    changed = loop.merged(loaded["nf4"], loaded["nf4"].params, adapters())
    assert isinstance(changed.params["layers"]["q"], Quantized) and changed.params["layers"]["q"].a is not None


def test_the_export_is_made_from_the_original_weights(folder, tmp_path, monkeypatch):
    """The factors of a run on an nf4 base lie on the weights that the source folder holds, and the adapter names that folder."""
    config, factors = defaults(), adapters()
    config.target.update({"model": str(folder), "dtype": "nf4"})
    config.training.methods = ("cat",)
    inputs = Inputs(config, epath.Path(tmp_path) / "seed_0", 0, [], [], [], [], {})
    manifest.write(inputs.folder / "cat" / loop.FINISHED, {"collapsed": False})
    monkeypatch.setattr(loop, "restore", lambda target, run, mesh: (target.params, factors))
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        export.run(inputs, mesh)
    original, found = (models.load(str(path)).params["layers"] for path in (folder, tmp_path / "seed_0" / "export" / "cat"))
    for name in lora.LINEAR:
        update = factors.scale * factors.factors[name]["a"] @ factors.factors[name]["b"]
        np.testing.assert_allclose(found[name], original[name] + update, atol=1e-5)
    said = json.loads((tmp_path / "seed_0" / "export" / "cat-adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(folder)
    with safe_open(tmp_path / "seed_0" / "export" / "cat-adapter" / "adapter_model.safetensors", "np") as file:
        assert file.metadata()["base_dtype"] == "nf4"
    assert "layers in nf4" in (tmp_path / "seed_0" / "export" / "cat" / "README.md").read_text()
    assert config.target.dtype == "nf4"


def test_factors_on_a_base_in_other_bits_are_warned_of(loaded, caplog):
    told = []
    for about in ({"base_dtype": "nf4"}, {"base_dtype": "float32"}, {}):
        for here in (quantized.precision(loaded["nf4"].params), "float32", "bfloat16"):
            caplog.clear()
            loop.warn_of_base(epath.Path("cat"), about, here)
            told.append(caplog.text)
    assert [bool(text) for text in told] == [False, True, True, True, False, False, False, False, False]
    assert "on a base in nf4, and lie on one in float32 here" in told[1] and "config.target.dtype = 'nf4'" in told[1]
    assert "on a base in float32, and lie on one in nf4 here" in told[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target.dtype": "int4"}, "config.target.dtype is 'int4'; allowed: float32 | bfloat16 | int8 | nf4"),
        ({"sampler.dtype": "q8"}, "config.sampler.dtype is 'q8'; allowed: float32 | bfloat16 | int8 | nf4"),
        ({"target.dtype": "nf4", "training.lora.rank": 0}, "config.target.dtype is 'nf4'; allowed: float32 | bfloat16 with"),
    ],
)  # fmt: skip
def test_a_precision_that_is_not_allowed_is_named(changes, message):
    config = defaults()
    config.world.enabled = True
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as found:
        validate(config)
    assert str(found.value).startswith(message)


def test_folders_that_cannot_be_quantized_or_written(tmp_path, loaded):
    narrow = ModelConfig(vocab_size=8, width=32, layers=1, heads=1)
    models.save(Model(weights.initialize(jax.random.key(0), narrow), narrow, None), str(tmp_path / "narrow"))
    with pytest.raises(ValueError, match="nf4 needs matrices whose inputs come in blocks of 64, and one has 32; allowed: int8"):
        models.load(str(tmp_path / "narrow"), dtype="nf4")
    with pytest.raises(ValueError, match=r"allowed: .*'int8', 'nf4'"):
        models.load(str(tmp_path / "narrow"), dtype="int4")
    with pytest.raises(ValueError, match=r"weights are quantized and cannot be written .*; allowed: a model in float32, bfloat16"):
        models.save(loaded["int8"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and ("float32", "bfloat16", *KINDS) == huggingface.PRECISIONS


def test_codes_are_decoded_by_choices():
    every = jnp.arange(16, dtype=jnp.uint8)
    np.testing.assert_array_equal(quantized._decoded(every), np.asarray(quantized.NF4, np.float32))
    assert all(one < two for one, two in itertools.pairwise(quantized.NF4))


def vjp_is_that_of(matrix, product, rows):
    """Asserts that product(x) and its gradient are those of x @ matrix."""
    draw = np.random.default_rng(1)
    x, dy = (draw.normal(size=(*rows, size)).astype(np.float32) for size in matrix.shape)
    y, back = jax.vjp(product, jnp.asarray(x))
    np.testing.assert_allclose(y, x @ matrix, rtol=0, atol=2e-6 * np.abs(x @ matrix).max())
    np.testing.assert_allclose(back(jnp.asarray(dy))[0], dy @ matrix.T, rtol=0, atol=2e-6 * np.abs(dy @ matrix.T).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [(3, 5), (quantized.FEW + 1,)], ids=["few", "many"])
def test_a_product_is_that_with_the_matrix(kind, rows):
    weight = quantized.of_stack(np.random.default_rng(0).normal(size=(1, 128, 24)).astype(np.float32), kind)
    one = Quantized(weight.codes[0], weight.scales[0], kind=kind)
    vjp_is_that_of(np.asarray(one.matrix(jnp.float32)), lambda x: quantized.product(x, one), rows)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)], ids=["one device", "four devices"])
@pytest.mark.parametrize("part", [1 << 21, 1536, 1], ids=["at once", "several parts", "every block"])
def test_a_product_in_parts_is_that_with_the_matrix(part, shape, monkeypatch):
    """What a TPU does with few rows: a matrix of 1024 x 24, 12288 bytes of codes in 16 blocks, whose inputs and outputs may be split."""
    monkeypatch.setattr(quantized, "PART", part)
    mesh, run = sharding.make_mesh(*shape), jax.jit(lambda *arrays: quantized._product_in_parts(*arrays))
    codes, scales = quantized.quantize(np.random.default_rng(0).normal(size=(1024, 24)).astype(np.float32), "nf4")
    matrix = np.asarray(Quantized(codes, jnp.asarray(scales), kind="nf4").matrix(jnp.float32))
    found = quantized.abstract("nf4", (1, 1024, 24), (None, "embed", "mlp"), mesh)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x[None], like.sharding)[0] for x, like in ((codes, found.codes), (scales, found.scales))]
        assert placed[0].sharding.shard_shape((512, 24)) == (512 // shape[1], 24 // shape[2])
        vjp_is_that_of(matrix, lambda x: run(x, *placed), (3, 5))
