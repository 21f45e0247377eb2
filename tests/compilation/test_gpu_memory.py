"""What the configurations of small hardware promise: the same run as on a slice, in memory that falls with the rows worked on at a time."""

import pathlib
import re
import runpy

import jax
import pytest

from dat_jax import compilation, sharding
from dat_jax.compilation import chips, programs
from dat_jax.config import defaults, validate
from dat_jax.methods import METHODS
from dat_jax.models.config import ModelConfig
from dat_jax.settings import dotted

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def configuration(name):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()


def test_the_gpu_runs_what_the_tpus_run():
    gpu, tpu = (dict(dotted(configuration(name))) for name in ("llama3_gpu", "llama3_tpu"))
    differing = {key for key in gpu if gpu[key] != tpu[key]}
    hardware = {"topology", "training.micro_batch", "training.keep_products", "evaluation.batch_size"}
    assert differing - {key for key in differing if key.startswith("mesh.")} == hardware
    validate(configuration("llama3_gpu"))


def test_the_small_gpu_runs_what_the_large_one_runs():
    small, large = (dict(dotted(configuration(name))) for name in ("llama3_gpu_24gb", "llama3_gpu"))
    kept = {"methods.cat.perturbation.keep_products", "attacks.embedding.perturbation.keep_products"}
    memory = {"topology", "target.dtype", "sampler.dtype", "training.micro_batch", "sampler.batch_size", "evaluation.batch_size"}
    assert {key for key in small if small[key] != large[key]} <= memory | kept
    validate(configuration("llama3_gpu_24gb"))


def test_four_tpu_chips_run_what_sixteen_run():
    small, large = (dict(dotted(configuration(name))) for name in ("llama3_tpu_4chips", "llama3_tpu"))
    kept = {"training.keep_products", "attacks.embedding.perturbation.keep_products"}
    memory = {"topology", "target.dtype", "sampler.dtype", "sampler.batch_size", "evaluation.batch_size"}
    mesh = {"mesh.data", "mesh.tensor", "mesh.processes"}
    assert {key for key in small if small[key] != large[key]} == memory | kept | mesh
    validate(configuration("llama3_tpu_4chips"))


@pytest.mark.parametrize(
    "name, more",
    [("qwen2_5_tpu_8chips", set()), ("qwen2_5_gpu_40gb", {"mesh.tensor", "target.dtype", "sampler.dtype", "training.micro_batch"})],
)
def test_qwen_on_small_hardware_is_the_run_of_sixteen_chips(name, more):
    small, large = (dict(dotted(configuration(found))) for found in (name, "qwen2_5_tpu"))
    memory = {"topology", "attacks.embedding.perturbation.keep_products", "sampler.batch_size", "evaluation.batch_size"}
    assert {key for key in small if small[key] != large[key]} == memory | {"mesh.data", "mesh.processes"} | more
    validate(configuration(name))


@pytest.mark.parametrize("name", ["h100", "a100_40", "rtx4090"])
def test_a_gpus_description_says_its_memory_and_bandwidth(name):
    """Of a card's memory 90 % are what a program may use; the compiler's numbers and ours are of one card."""
    found, chip = chips.CHIPS[name].gpu, chips.CHIPS[name]
    told = {key: float(re.search(rf"{key}: (\d+)", found)[1]) for key in ("device_memory_size", "memory_bandwidth")}
    assert chip.hbm_bytes == pytest.approx(0.9 * told["device_memory_size"], rel=0.005)
    assert chip.hbm_bytes_per_second == pytest.approx(told["memory_bandwidth"], rel=0.01)


def temporaries(**training):
    """Bytes that a small train step needs beside its arguments, by XLA's account on a CPU; nothing is allocated."""
    config = defaults()
    config.data.update({"prompt_length": 64, "response_length": 64, "adversarial_rows": 4, "utility_rows": 12})
    config.methods.cat.perturbation.steps = 2
    config.training.update(training)
    config.training.lora.rank = 4
    model = ModelConfig(vocab_size=64, width=32, layers=4, heads=2, model_type="llama", max_length=128)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        lowered = programs.train_step(config, model, mesh, METHODS["cat"]).lower()
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_falls_with_the_rows_at_a_time_and_grows_with_kept_products():
    whole, quarter, kept = temporaries(micro_batch=0), temporaries(micro_batch=4), temporaries(micro_batch=4, keep_products=True)
    assert whole > 2.5 * quarter
    assert kept > 1.1 * quarter


@pytest.mark.parametrize("topology", ["h200:1x1", "h100", "h100:1"])
def test_an_unknown_gpu_is_an_error_that_says_what_is_known(topology):
    with pytest.raises(ValueError, match=rf"config\.topology is '{topology}'; allowed: v5e, .*h100, .*a colon and .* 'h100:1x1'"):
        chips.chip(topology)


@pytest.mark.slow
def test_a_program_is_compiled_for_a_gpu_that_is_not_there(tmp_path, capsys):
    pytest.importorskip("jax_cuda12_plugin", reason="compiling for a GPU needs jax's plugin for CUDA (the extra cuda)")
    config = defaults()
    config.topology, config.mesh.fsdp, config.training.methods = "h100:1x1", 1, ("cat",)
    config.target.model = "meta-llama/Meta-Llama-3-8B-Instruct"
    config.evaluation.update({"batch_size": 4, "max_new_tokens": 4})
    assert compilation.run(config, str(tmp_path), ("decoder",)) == 0
    assert "decoder" in capsys.readouterr().out and (tmp_path / "compile.json").exists()
