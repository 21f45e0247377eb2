"""A train step on quantized weights as a TPU's compiler makes it: no copy of all layers' dequantized matrices is ever there."""

import dataclasses
import pathlib
import re

import jax
import pytest

from dat_jax import sharding
from dat_jax.compilation import chips, costs, hlo, memory, programs
from dat_jax.config import defaults
from dat_jax.methods import METHODS
from dat_jax.models import lora, quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.quantized import KINDS

MODEL = ModelConfig(vocab_size=256, width=512, layers=16, heads=4, mlp_width=2048, compute_dtype="bfloat16")


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_is_evaluated_with_its_factors_beside_the_codes(kind):
    """What is compiled for the decoder and the attack has the shapes of what an evaluation loads."""
    config, small, mesh = defaults(), dataclasses.replace(MODEL, layers=2, width=64, mlp_width=128), sharding.make_mesh(1, 1, 1)
    config.target.dtype, config.training.lora.rank = kind, 3
    fresh = weights.initialize(jax.random.key(0), small)
    layers = {name: quantized.of_stack(fresh["layers"][name], kind) for name in lora.LINEAR}
    loaded = lora.merge({**fresh, "layers": {**fresh["layers"], **layers}}, lora.initialize(jax.random.key(1), small, 3, 6.0))
    found = programs.trained_weights(config, small, mesh)
    for name in lora.LINEAR:
        parts = zip(jax.tree.leaves(found["layers"][name]), jax.tree.leaves(loaded["layers"][name]), strict=True)
        assert [(one.shape, one.dtype) for one, _ in parts] == [(x.shape, x.dtype) for x in jax.tree.leaves(loaded["layers"][name])]
        assert len(jax.tree.leaves(found["layers"][name])) == 4  # codes, scales and two factors


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "codes"), [("nf4", "u8[16,256,2048]"), ("int8", "s8[16,512,2048]")])  # nf4: two inputs in a byte
def test_a_step_holds_no_copy_of_all_layers(tmp_path, kind, codes):
    pytest.importorskip("libtpu")
    config = defaults()
    config.target.update({"dtype": kind, "compute_dtype": "bfloat16"})
    config.data.update({"prompt_length": 32, "response_length": 32, "adversarial_rows": 1, "utility_rows": 1})
    config.training.lora.rank, config.methods.cat.perturbation.steps = 4, 2
    mesh = sharding.make_mesh(1, 1, 1, devices=chips.devices("v5e:2x2")[:1])
    with jax.set_mesh(mesh):
        lowered = programs.train_step(config, MODEL, mesh, METHODS["cat"]).lower()
    text = lowered.compile(compiler_options={"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}).as_text()
    matrices = [weight.shape for weight in weights.table(MODEL)["layers"].values() if weight.matrix]
    for shape in set(matrices):
        assert not re.search(rf"(bf16|f32)\[{','.join(map(str, shape))}\]", text), shape
    assert codes in text
    whole = sum(2 * weight.size for weight in weights.abstract(MODEL)["layers"].values())  # in bfloat16
    found = memory.read(pathlib.Path(tmp_path), hlo.parse(memory.dumped(pathlib.Path(tmp_path), "after_optimizations.txt")))
    assert found.temporaries < whole / 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_read_the_codes_and_no_matrix_is_written(kind):
    """What a decoder does for each token, up and down of four layers of Llama-3-8B: the chip's memory gives the codes once, and no more."""
    pytest.importorskip("libtpu")
    where = jax.sharding.SingleDeviceSharding(chips.devices("v5e:1x1")[0])
    stacks = [quantized.abstract(kind, (4, *shape), (None, None, None), None) for shape in ((4096, 14336), (14336, 4096))]
    x, stacks = jax.tree.map(
        lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=where), (jax.ShapeDtypeStruct((16, 4096), "bfloat16"), stacks)
    )

    def layers(x, stacks):
        return jax.lax.scan(lambda x, layer: (quantized.product(jax.nn.silu(quantized.product(x, layer[0])), layer[1]), None), x, stacks)[0]

    found = costs.cost(hlo.parse(jax.jit(layers).lower(x, stacks).compile().as_text()))
    size = sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(stacks))
    assert 0.95 * size < found.hbm_bytes < 1.05 * size and not found.unknown_loops
