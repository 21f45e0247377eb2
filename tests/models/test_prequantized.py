"""Checkpoints that bitsandbytes wrote: what it recorded of its own layers, and folders made by hand from its format."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dat_jax import models
from dat_jax.compilation import published
from dat_jax.config import defaults
from dat_jax.models import prequantized, quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

CONFIG = ModelConfig(vocab_size=40, width=64, layers=2, heads=2, kv_heads=1, mlp_width=128)
NF4 = np.asarray(quantized.NF4, np.float32)


def test_what_bitsandbytes_wrote_is_what_it_reads(golden):
    """bitsandbytes 0.50 quantized these layers on a CPU, and dequantized their last 12 rows."""
    with safe_open(golden / "bitsandbytes" / "layers.safetensors", "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys() if not name.endswith("expected")}  # noqa: SIM118 (not a mapping)
        found = prequantized.decoded(slices, "FOLDER")
        assert sorted(found) == ["fp4.weight", "int8.weight", "nf4.weight", "nf4_double.weight"]
        for name, slice_ in found.items():
            wanted = file.get_tensor(name.replace("weight", "expected"))
            assert slice_.get_shape() == [130, 128] and slice_.get_dtype() == "F32" and np.abs(wanted).max() > 1
            np.testing.assert_allclose(slice_[118:130, 0:128], wanted, rtol=3e-6)
            np.testing.assert_array_equal(slice_[121:127, 37:99], slice_[0:130][121:127, 37:99])
            if name.startswith("nf4"):  # quantized anew, its codes stay, and bfloat16 scales are off by 2^-9 at most
                codes, scales = quantized.quantize(np.ascontiguousarray(slice_[0:130].T), "nf4")
                again = quantized.Quantized(codes, scales, kind="nf4").matrix(np.float32).T
                np.testing.assert_allclose(again[118:130], wanted, rtol=2**-8)


def eight(matrix):
    """The tensors of an int8 matrix, and what they stand for."""
    greatest = np.abs(matrix).max(axis=1)
    codes = np.rint(matrix / greatest[:, None] * 127).astype(np.int8)
    return {"weight": codes, "SCB": greatest, "weight_format": np.array(0, np.uint8)}, codes / np.float32(127) * greatest[:, None]


def four(matrix):
    """The tensors of an nf4 matrix in blocks of 32, and what they stand for, number by number."""
    numbers, bytes_, values = matrix.reshape(-1), [], []
    absmax = np.abs(matrix.reshape(-1, 32)).max(axis=1)
    codes = [int(np.abs(NF4 - number / absmax[i // 32]).argmin()) for i, number in enumerate(numbers)]
    for one, two in zip(codes[::2], codes[1::2], strict=True):
        bytes_.append(16 * one + two)
    values = [NF4[code] * absmax[i // 32] for i, code in enumerate(codes)]
    state = json.dumps({"quant_type": "nf4", "blocksize": 32, "dtype": "float32", "shape": list(matrix.shape)})
    found = {"weight": np.array(bytes_, np.uint8)[:, None], "weight.absmax": absmax, "weight.quant_map": NF4}
    found["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(state.encode(), np.uint8)
    return found, np.array(values, np.float32).reshape(matrix.shape)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model whose matrices are in nf4 in the first layer and int8 in the second, and the same one in float32; each in several files."""
    place = tmp_path_factory.mktemp("prequantized")
    models.save(Model(weights.initialize(jax.random.key(0), CONFIG), CONFIG, None), str(place / "plain"), shard_bytes=1 << 16)
    (place / "quantized").mkdir()
    listed = {}
    for path in sorted((place / "plain").glob("*.safetensors")):
        plain, small = load_file(path), {}
        for name, tensor in plain.items():
            if "_proj" not in name:
                small[name] = tensor
                continue
            parts, plain[name] = (four if "layers.0" in name else eight)(tensor)
            small |= {name.removesuffix("weight") + part: x for part, x in parts.items()}
        save_file(plain, path)
        save_file(small, place / "quantized" / path.name)
        listed |= dict.fromkeys(small, path.name)
    (place / "plain" / "manifest.json").unlink()  # the weights are others now
    (place / "quantized" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    fields = json.loads((place / "plain" / "config.json").read_text())
    fields |= {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (place / "quantized" / "config.json").write_text(json.dumps(fields))
    return place


def test_a_quantized_folder_is_read_into_every_precision(folders):
    assert len(list((folders / "quantized").glob("*.safetensors"))) > 2
    for dtype in ("float32", "int8", "nf4"):
        one, two = (models.load(str(folders / name), dtype=dtype).params for name in ("quantized", "plain"))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            assert a.dtype == b.dtype
            if dtype == "float32":
                np.testing.assert_allclose(a, b, rtol=1e-6)
            else:  # another rounding of the product may give a number at the edge the next code
                assert (np.asarray(a) != np.asarray(b)).mean() < 0.01


def test_what_is_written_of_it_is_not_quantized(folders, tmp_path):
    model = models.load(str(folders / "quantized"))
    models.save(model, str(tmp_path / "out"))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, models.load(str(tmp_path / "out")).params, model.params)


@pytest.mark.parametrize(("ending", "known"), prequantized.KNOWN.items())
def test_a_tensor_of_a_format_that_is_not_read_names_it(ending, known):
    with pytest.raises(ValueError, match=rf"FOLDER: tensor 'q{ending}' is of a checkpoint quantized by {known}; allowed: the model that"):
        prequantized.decoded({f"q{ending}": None}, "FOLDER")


def test_compiling_asks_the_same(folders, tmp_path):
    group = defaults().target
    group.model = str(folders / "quantized")
    assert published.architecture(group).width == 64
    fields = json.loads((folders / "quantized" / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    group.model = str(tmp_path)
    with pytest.raises(ValueError, match=r"config.json has a quantization_config of quant_method 'awq'; allowed: .*nf4 or fp4"):
        published.architecture(group)
