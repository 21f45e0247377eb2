"""A train step on quantized weights as a TPU's compiler makes it: no copy of all layers' dequantized matrices is ever there."""

import pathlib
import re

import jax
import pytest

from dat_jax import sharding
from dat_jax.compilation import chips, hlo, memory, programs
from dat_jax.config import defaults
from dat_jax.methods import METHODS
from dat_jax.models import quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.quantized import KINDS

MODEL = ModelConfig(vocab_size=256, width=512, layers=16, heads=4, mlp_width=2048, compute_dtype="bfloat16")


@pytest.mark.slow
def test_a_step_holds_no_copy_of_all_layers(tmp_path):
    pytest.importorskip("libtpu")
    config = defaults()
    config.target.update({"dtype": "nf4", "compute_dtype": "bfloat16"})
    config.data.update({"prompt_length": 32, "response_length": 32, "adversarial_rows": 1, "utility_rows": 1})
    config.training.lora.rank, config.methods.cat.perturbation.steps = 4, 2
    mesh = sharding.make_mesh(1, 1, 1, devices=chips.devices("v5e:2x2")[:1])
    with jax.set_mesh(mesh):
        lowered = programs.train_step(config, MODEL, mesh, METHODS["cat"]).lower()
    text = lowered.compile(compiler_options={"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}).as_text()
    matrices = [weight.shape for weight in weights.table(MODEL)["layers"].values() if weight.matrix]
    for shape in set(matrices):
        assert not re.search(rf"(bf16|f32)\[{','.join(map(str, shape))}\]", text), shape
    assert "u8[16,256,2048]" in text  # two inputs in a byte
    whole = sum(2 * weight.size for weight in weights.abstract(MODEL)["layers"].values())  # in bfloat16
    found = memory.read(pathlib.Path(tmp_path), hlo.parse(memory.dumped(pathlib.Path(tmp_path), "after_optimizations.txt")))
    assert found.temporaries < whole / 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_of_few_rows_decodes_within(kind):
    """What a decoder does for each token: the codes are read, and no matrix is written to the chip's memory."""
    pytest.importorskip("libtpu")
    where = jax.sharding.SingleDeviceSharding(chips.devices("v5e:2x2")[0])
    weight = quantized.abstract(kind, (1, 2048, 4096), (None, None, None), None)
    codes, scales = (jax.ShapeDtypeStruct(part.shape[1:], part.dtype, sharding=where) for part in (weight.codes, weight.scales))
    x = jax.ShapeDtypeStruct((16, 2048), "bfloat16", sharding=where)
    product = jax.jit(lambda x, codes, scales: quantized.product(x, quantized.Quantized(codes, scales, kind=kind)))
    assert product.lower(x, codes, scales).compile().memory_analysis().temp_size_in_bytes < 2048 * 4096 / 8
