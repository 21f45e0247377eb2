"""The programs of a run as they are compiled, against the formulas, and the page and JSON that come of an account."""

import dataclasses
import json
import pathlib
import runpy

import jax
import pytest

from dat_jax import compilation, sharding
from dat_jax.compilation import chips, costs, hlo, memory, programs, published, report, table, whole_run
from dat_jax.config import defaults
from dat_jax.methods import METHODS
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
MODEL = ModelConfig(vocab_size=96, width=32, layers=3, heads=4, kv_heads=2, mlp_width=80, remat=False)


@pytest.mark.parametrize(
    ("method", "rank", "changes"),
    [
        ("cat", 4, {}),
        ("cat", 0, {}),
        ("cat", 4, {"perturbation.sites": (2,)}),
        ("cat", 4, {"perturbation.sites": (1, 2)}),
        ("cat", 0, {"perturbation.sites": (2,), "perturbation.absolute_radius": True}),
        ("cat", 0, {"perturbed": 0.5, "held": 0.5, "holding.steps": 1, "objective.retention": "kl"}),
        ("refusal_sft", 4, {}),
        ("derta", 4, {}),
        ("capo", 4, {"perturbation.steps": 3}),
        ("lat", 4, {"perturbation.steps": 3, "perturbation.sites": (0, 2), "updates": 2}),
        ("lat", 0, {"perturbation.steps": 3, "perturbation.sites": (0, 2), "updates": 1, "perturbation.absolute_radius": False}),
        ("lat", 4, {"perturbation.steps": 3, "perturbation.sites": (1, 2), "updates": 1}),
        ("cat", 0, {"perturbation.steps": 0}),
        ("circuit_breakers", 4, {"layers": (1, 2)}),
        ("r2d2", 4, {"steps": 2, "candidates": 4, "batch_size": 4, "tokens": 8}),
    ],
)  # fmt: skip
def test_train_step(method, rank, changes, monkeypatch):
    """The operations that a method's formula gives, scope by scope, are those that its compiled step holds."""
    config = configuration()
    config.training.lora.rank, config.training.methods = rank, (method,)
    config.update_from_flattened_dict({f"methods.{method}.{key}": value for key, value in changes.items()})
    monkeypatch.setattr(programs, "architecture", lambda group: MODEL)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        program = next(programs.of_run(config, mesh))
        found = costs.cost(hlo.parse(program.lower().compile().as_text()))
    assert not found.unknown_loops
    for scope, needed in program.flops.items():
        assert found.flops[scope] == pytest.approx(needed, rel=0.03), scope


def test_every_methods_operations_are_compared_with_its_program():
    compared = {case[0] for mark in test_train_step.pytestmark if mark.name == "parametrize" for case in mark.args[1]}
    assert {method.flops for method in METHODS.values() if method.flops} == {METHODS[name].flops for name in compared}


def test_the_attacks_program_takes_its_arguments(monkeypatch):
    monkeypatch.setattr(programs, "architecture", lambda group: MODEL)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        *_, program = programs.of_run(configuration(), mesh)
        assert program.name == "embedding_attack" and "main" in program.lower().as_text()


def configuration():
    c = defaults()
    c.target.update({"model": "tiny", "dtype": "bfloat16", "compute_dtype": "bfloat16"})
    c.data.update({"prompt_length": 64, "response_length": 64, "adversarial_rows": 8, "utility_rows": 8})
    c.evaluation.update({"batch_size": 8, "max_new_tokens": 8})
    c.methods.cat.perturbation.update({"steps": 3})
    c.attacks.embedding.perturbation.update({"steps": 2})
    c.mesh.update({"data": 1, "fsdp": 4, "tensor": 1})
    c.training.lora.rank = 4
    return c


def test_published_shapes_have_the_published_sizes():
    def parameters(name):
        group = defaults().target
        group.model = name
        return sum(x.size for x in jax.tree.leaves(weights.abstract(published.architecture(group))))

    assert parameters("meta-llama/Meta-Llama-3-8B-Instruct") == 8_030_261_248
    assert parameters("google/gemma-2-9b-it") == 9_241_705_984
    assert parameters("Qwen/Qwen2.5-14B-Instruct") == 14_770_033_664
    assert parameters("GSAI-ML/LLaDA-8B-Base") == 8_015_581_184


def test_topologies_that_cannot_be():
    for name in ("v5e", "v4:2x2x1", "v5litepod:4x4", ""):
        with pytest.raises(ValueError, match=r"config.topology is .*allowed: v5e, v5p, v6e, tpu7x"):
            chips.chip(name)


@pytest.mark.parametrize("key", ["target", "sampler"])
def test_a_kernel_that_the_chip_lacks_is_named_before_anything_is_compiled(key):
    config = configuration()
    config.topology, config.sampler.model = "h100:1x1", "GSAI-ML/LLaDA-8B-Base"
    config.target.attention = config.sampler.attention = "xla"
    config[key].attention = "splash"
    with pytest.raises(ValueError, match=rf"config.{key}.attention is 'splash', .* of kind 'gpu'; allowed: xla"):
        compilation.run(config)


def test_a_train_step_says_whose_it_is(monkeypatch):
    """Nothing is lowered: the texts are those of the table's rows, and methods that share a program share one."""
    monkeypatch.setattr(programs, "architecture", lambda group: MODEL)
    config, mesh = configuration(), sharding.make_mesh(1, 1, 1)
    config.training.methods = ("undefended", "cat", "dat", "self_consistency", "capo", "refusal_sft", "lat", "circuit_breakers")
    rows = "8 adversarial + 8 utility rows of 64 + 64"
    with jax.set_mesh(mesh):
        assert [program.about for program in programs.of_run(config, mesh) if program.name == "train_step"] == [
            f"CAT and DAT, {rows}, 3 attack steps", f"Self-consistency, {rows}, 10 attack steps", f"CAPO, {rows}, 10 attack steps",
            f"Refusal SFT, {rows}", f"LAT, {rows}, 16 attack steps, 4 updates", f"Circuit breakers, {rows}, layers 10, 20",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "key", "value"), [("lat", "perturbation.sites", (0, 3)), ("dat_circuit_breakers", "layers", (2, 3)), ("cat", "", 0)]
)
def test_a_layer_that_the_model_does_not_have_is_named_before_anything_is_compiled(method, key, value, monkeypatch):
    """As for a run that is not compiled; the budget is checked in the same place."""

    def compiler(*_):
        raise AssertionError("the compiler was started")

    monkeypatch.setattr(programs, "architecture", lambda group: MODEL)
    monkeypatch.setattr(chips, "devices", compiler)
    config = configuration()
    config.topology, config.training.methods = "v5e:2x2", (method,)
    if key:
        group = method.removeprefix("dat_")
        config.update_from_flattened_dict({f"methods.{group}.{key}": value})
        message = rf"config\.methods\.{group}\.{key} names site 3; allowed for a model of 3 layers: 0 to 2"
    else:
        config.training.flops, message = 1.0, r"config\.training\.flops is 1; allowed: 0, or .* \(one step of cat\) up to"
    with pytest.raises(ValueError, match=message):
        compilation.run(config)


ASSIGNMENT = """BufferAssignment:
allocation 0: size 9600, parameter 0, shape |bf16[120,40]| at ShapeIndex {}:
 value: <13 param @0> (size=9600,offset=0): bf16[120,40]{0,1:T(8,128)(2,1)}
allocation 1: size 700, output shape is |bf16[120,40]|, maybe-live-out:
allocation 2: size 50, color 1, preallocated-temp:
allocation 3: size 28800, preallocated-temp:
"""
RANGES = """  Live ranges at 2 (peak):
    fusion{}: 28800 bytes (cumulative: 28800 bytes)
    while{1}: 9600 bytes (cumulative: 38400 bytes)
  Stack trace breakdown for peak usage: 48 000 bytes
"""


def test_the_compilers_account_of_memory():
    assert memory.allocations(ASSIGNMENT) == (9600, 700, 28800)
    assert memory.peak(RANGES) == {"fusion": 28800, "while{1}": 9600}


def test_an_account_says_what_bounds_it():
    chip = chips.Chip(hbm_bytes=1000, hbm_bytes_per_second=100, flops_per_second=50, ici_bytes_per_second=10, slices=())
    cost = costs.Cost(hbm_bytes=300)
    cost.flops["attack"] = 200
    cost.collectives["1"] = costs.Collective("all-gather", "jit(f)/w", "bf16[8]", 4, 5.0, 2.0)
    buffers = (memory.Buffer("fusion.1", 900, "bf16[450]", "jit(f)/attack/dot"),)
    program = programs.Program("train_step", "8 rows", {"attack": 300.0}, lambda: None)
    a = report.account(program, 2, chip, memory.Memory(200, 900, 0, 1100, buffers), cost, 3.0)
    assert (a.fits, a.seconds, a.bounds) == (False, 4.0, {"flops": 4.0, "hbm": 3.0, "links": 1.0})
    assert a.utilization == 300 / (4.0 * 2 * 50) and a.recomputation == 400 / 300
    page = report.text(a)
    assert "DOES NOT FIT" in page and "fusion.1" in page and "bound by flops" in page and "2 x all-gather" in page
    assert json.loads(json.dumps(report.record(a)))["roofline"]["utilization"] == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("method", ["r2d2", "circuit_breakers", "lat"])
def test_what_a_method_keeps_or_looks_at_needs_no_device(method, monkeypatch):
    """The step is lowered for chips that are not there: R2D2 with its pool, circuit breakers with the model before training."""
    pytest.importorskip("libtpu")
    model = dataclasses.replace(MODEL, attention="splash", width=256, heads=2, kv_heads=2)
    monkeypatch.setattr(programs, "architecture", lambda group: model)
    config = configuration()
    config.training.methods, config.methods.circuit_breakers.layers, config.methods.lat.perturbation.sites = (method,), (1,), (0, 1)
    config.methods.r2d2.update({"candidates": 16, "batch_size": 8, "topk": 8})
    mesh = sharding.make_mesh(1, 4, 1, 1, chips.devices("v5e:2x2", 1))
    with jax.set_mesh(mesh):
        assert "main" in next(programs.of_run(config, mesh)).lower().as_text()


@pytest.mark.slow
def test_compiling_for_a_slice_that_fits_and_for_one_that_does_not(monkeypatch, tmp_path, capfd):
    pytest.importorskip("libtpu")
    config = configuration()
    config.topology = "v5e:2x2"
    model = ModelConfig(vocab_size=512, width=256, layers=2, heads=2, mlp_width=512, compute_dtype="bfloat16", attention="splash")
    monkeypatch.setattr(programs, "architecture", lambda group: model)
    assert compilation.run(config, str(tmp_path)) == 0
    saved = json.loads((tmp_path / "compile.json").read_text())
    assert [p["program"] for p in saved["programs"]] == ["train_step", "decoder", "embedding_attack"]
    for p in saved["programs"]:
        assert p["fits"] and p["hbm"]["usable"] == 15.75 * 2**30 and not p["loops_of_unknown_length"]
        assert p["collectives"] and p["buffers"] and 0 < p["roofline"]["utilization"] < 1
        assert 0.95 < p["flops"]["recomputation"] < 1.6, p["program"]

    config.data.utility_rows, config.data.response_length = 4096, 8128
    assert compilation.run(config, None, ("train_step",)) == 1
    assert "train_step does not fit into v5e:2x2; largest buffers: " in capfd.readouterr().err


def test_the_readme_table(tmp_path, capsys):
    program = {"program": "sampler", "about": "8 rows", "hbm": {"peak": 2**31, "usable": 2**34}}
    program |= {"collectives": {"all-gather": {"count": 2, "bytes": 5e9}}}
    program |= {"flops": {"recomputation": 1.2}, "roofline": {"seconds": 0.5, "utilization": 0.81}}
    about = {"target": "a/Target", "sampler": "b/Sampler", "topology": "v5e:4x4", "mesh": "2x1x8", "programs": [program]}
    about["attention"] = {"target": "splash", "sampler": "xla"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "compile.json").write_text(json.dumps(about))
    assert table.main([f"--workdir={tmp_path}", "configs/mine.py"]) == 0
    row = "| Sampler | sampler: 8 rows | v5e:4x4 | 2x1x8 | xla | 2.0 of 16.0 GiB | 5 GB | 1.20 | 0.50 s | 81 % |"
    assert row in capsys.readouterr().out


def test_a_run_that_the_compiler_fails_at_is_a_row(tmp_path, capsys, monkeypatch):
    def failing(config, workdir, only):
        raise compilation.CompilerError("train_step: the compiler fails: INTERNAL: Mosaic | failed at a line")

    monkeypatch.setattr(compilation, "run", failing)
    monkeypatch.setattr(table, "RUNS", (table.Run(str(CONFIGS / "llama3_tpu.py"), table.FOUR | table.NF4, ("train_step",)),))
    assert table.main([f"--workdir={tmp_path}"]) == 1
    row = "| Meta-Llama-3-8B-Instruct, nf4 | the compiler fails: train_step: INTERNAL: Mosaic / failed at a line | v5e:2x2 | 1x1x4 | xla |"
    assert row + " - |" * 5 in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_what_the_compiler_fails_at_is_named():
    def lower():
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat a line")

    program = programs.Program("train_step", "8 rows", {}, lower)
    message = r"^train_step: the compiler fails: INTERNAL: Mosaic failed at a line; .*attention = xla"
    with pytest.raises(compilation.CompilerError, match=message):
        compilation.compiled(program, 1, chips.CHIPS["v5e"])


def test_weights_beside_a_program_count_with_its_arguments():
    """A merged model has its own matrices in the layers; the target's lie beside them, and beside the sampler between re-sampled rounds."""
    config, mesh = configuration(), sharding.make_mesh(1, 1, 1)
    config.training.methods, config.training.lora.rank, config.target.dtype = ("cat", "dat"), 4, "bfloat16"
    model = ModelConfig(vocab_size=512, width=256, layers=2, heads=2, mlp_width=512)
    matrices = 2 * 2 * (4 * 256 * 256 + 3 * 256 * 512)  # bytes: two layers, q k v o and gate up down
    assert programs.beside_a_trained_model(config, model, mesh) == matrices
    config.target.dtype = "nf4"
    assert programs.beside_a_trained_model(config, model, mesh) == 0
    config.target.dtype, config.training.lora.rank = "bfloat16", 0
    assert programs.beside_a_trained_model(config, model, mesh) == programs.bytes_per_device(weights.abstract(model, "bfloat16", mesh))
    memory_ = memory.Memory(200, 900, 0, 1100, ())
    program = programs.Program("decoder", "8 rows", {"decode": 1.0}, lambda: None, beside=2.0**30)
    a = report.account(program, 1, chips.CHIPS["v5e"], memory_, costs.Cost(), 3.0)
    assert (a.memory.arguments, a.memory.total, a.about) == (200 + 2**30, 1100 + 2**30, "8 rows, 1.0 GiB of other weights beside")


def test_the_target_lies_beside_the_sampler_where_prompts_are_drawn_anew(monkeypatch):
    config, mesh = configuration(), sharding.make_mesh(1, 1, 1)
    model = ModelConfig(vocab_size=512, width=256, layers=2, heads=2, mlp_width=512)
    monkeypatch.setattr(programs, "architecture", lambda group: model)
    config.training.methods, config.training.lora.rank, config.target.dtype = ("cat", "dat"), 4, "bfloat16"
    config.sampler.refresh_every, config.evaluation.attacks = 0, ("direct",)
    assert programs.beside_the_sampler(config, mesh) == 0
    config.evaluation.attacks = ("direct", "infilling_adapted")
    # The target, and the matrices of the model that it has become: two layers, q k v o and gate up down, in bfloat16.
    matrices = 2 * 2 * (4 * 256 * 256 + 3 * 256 * 512)
    target = programs.bytes_per_device(weights.abstract(model, "bfloat16", mesh)) + matrices
    config.sampler.dtype = "bfloat16"
    assert programs.beside_the_sampler(config, mesh) == target + matrices  # the sampler's, before its factors were merged
    config.sampler.dtype = "nf4"
    assert programs.beside_the_sampler(config, mesh) == target
    config.sampler.refresh_every, factors = 10, 4 * 4 * 2 * (4 * (256 + 256) + 3 * (256 + 512))  # bytes: float32, rank 4, two layers
    assert programs.beside_the_sampler(config, mesh) == pytest.approx(target + 3 * factors, abs=16)  # with both moments, and counters
    config.target.dtype = "nf4"  # the codes of both are the same; the model has factors beside them
    codes = programs.bytes_per_device(weights.abstract(model, "nf4", mesh))
    assert programs.beside_the_sampler(config, mesh) == pytest.approx(codes + 4 * factors, abs=16)


def test_every_method_has_a_row_in_the_table():
    """On the slice and model of configs/llama3_tpu.py; methods of one loss, attack and settings are one program."""
    config = runpy.run_path(str(CONFIGS / "llama3_tpu.py"))["get_config"]()
    keys = {"training.methods", *table.LAT_LLAMA_3, *table.SPLASH}
    runs = [run for run in table.RUNS if run.path == "configs/llama3_tpu.py" and run.changes.keys() <= keys]
    named = {name for run in runs for name in run.changes.get("training.methods", config.training.methods)}
    shown = {(METHODS[name].inner, METHODS[name].loss, METHODS[name].key) for name in named}
    assert {(method.inner, method.loss, method.key) for method in METHODS.values()} == shown


def test_the_runs_of_the_tables_are_changes_of_shipped_configs():
    runs = (*table.RUNS, *table.GPU_RUNS)
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        config = runpy.run_path(str(CONFIGS.parent / run.path))["get_config"]()
        config.update_from_flattened_dict(run.changes)
        assert bool(chips.chip(config.topology).gpu) == (run in table.GPU_RUNS)
        assert config.target.attention == "xla" or config.topology not in whole_run.WITHOUT_SPLASH
