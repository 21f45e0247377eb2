"""The bound of a whole run against counts and hours worked out by hand."""

import pytest

from dat_jax.attacks import ATTACKS
from dat_jax.compilation import chips, programs, table, whole_run
from dat_jax.compilation.costs import Cost
from dat_jax.compilation.memory import Memory
from dat_jax.compilation.report import Account
from dat_jax.config import defaults
from dat_jax.diffusion.denoiser import forward_flops
from dat_jax.models.config import ModelConfig

GIB = 2**30


def account(name, seconds, arguments=1.0, temporaries=1.0, chip="v5e"):
    """An account whose products take so many seconds; memory in GiB."""
    cost, chip = Cost(), chips.CHIPS[chip]
    cost.flops["attack"] = seconds * chip.flops_per_second
    memory = Memory(arguments * GIB, temporaries * GIB, 0.0, (arguments + temporaries) * GIB, ())
    return Account(name, "", 8, chip, memory, cost, {"attack": 1.0}, 1.0)


@pytest.fixture
def config():
    c = defaults()
    c.sampler.model = "a/Sampler"
    c.sampler.update({"samples": 64, "batch_size": 32, "steps": 16, "prompt_tokens": (8, 32), "likelihood_samples": 8})
    c.utility.update({"samples": 2, "answers": 100})
    c.training.methods, c.training.steps = ("undefended", "cat", "dat"), 50
    c.evaluation.update({"batch_size": 64, "utility_prompts": 0, "forms": ()})
    c.evaluation.attacks = ("direct", "rewrite", "best_of_n", "embedding", "embedding+rewrite", "gcg", "tense")
    c.attacks.best_of_n.attempts = 4
    c.attacks.embedding.forms = ("past",)
    c.attacks.embedding.perturbation.steps = 20
    c.data.borderline = "absent.csv"
    return c


def test_how_often_each_program_runs(config):
    """200 behaviors are 4 batches of 64: direct, 5 forms, best of 4 (800 attempts: 13), two embedding attacks; 250 prompts are 4."""
    parts, left_out = whole_run.parts(config)
    assert {part.name: part.times for part in parts} == {
        "training, 2 methods": 100,
        "sampling prompts": 100 * 64 / 32 * 1.5,  # 8 draws of the bound for 16 denoising steps
        "sampling: the target's answers": 100,  # the selection asks for them, 64 at a time
        "sampling utility prompts": 7,
        "sampling utility prompts: the target's answers": 4,
        "answers": 3 * (4 + 5 * 4 + 13 + 4 + 4 + 4),
        "embedding attacks": 3 * (4 + 4),
    }
    assert left_out == ["gcg", "tense"]


def test_what_a_run_does_besides_is_counted_or_named(config):
    plain = {part.name for part in whole_run.parts(config)[0]}
    assert whole_run.uncounted(config) == ["the contrasts of data.unsafe or data.borderline"]
    config.training.update({"watch_every": 20, "watch_prompts": 100, "methods": ("self_consistency", "dat", "dat_lat")})
    config.sampler.update({"refresh_every": 25, "consistency": 1.0})
    config.data.update(
        {"benign": "absent.jsonl", "borderline": "absent.jsonl", "eval_behaviors": "absent.csv", "tasks": ("arc=absent.csv",)}
    )
    config.evaluation.update({"judges": ("refusal_prefix", "harmbench:plain"), "compare": ("other",)})
    found = {part.name: part.times for part in whole_run.parts(config)[0]}
    assert {name: times for name, times in found.items() if name not in plain} == {
        "training, 3 methods": 150,
        "training: watched prompts": 3 * 3 * 2 * 2,  # after steps 20, 40 and 50; two sets of 100, 64 at a time
        "training: own refusals": 2,
        "sampling again": 2 * 300,  # two methods train on samples, from step 26 on on others
        "sampling again: the target's answers": 2 * 100,
    }
    assert found["answers"] == 4 * (4 + 5 * 4 + 13 + 4 + 4 + 4 + 4)  # three methods and the other model; the benign prompts are 4 batches
    besides = ["sampler.consistency", "evaluation.measures: harmful, tasks", "the judges harmbench:plain"]
    assert whole_run.uncounted(config) == besides
    config.sampler.selection, config.utility.keep = "likelihood", "likelihood"
    assert not [part.name for part in whole_run.parts(config)[0] if "target's answers" in part.name]
    page = whole_run.text(
        {"times": {}, "hours": {}, "chip_hours": 0, "dollars": 0, "not_counted": [], "without_program": besides}, chips.CHIPS["v5e"]
    )
    assert page.endswith(
        "none of these programs does it: sampler.consistency; evaluation.measures: harmful, tasks; the judges harmbench:plain"
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_counted_or_named(config, name):
    config.evaluation.attacks, config.evaluation.forms, config.attacks.embedding.forms = (name,), ("past",), ("past",)
    answered, steps, left_out = whole_run.evaluation(config)
    assert left_out == ([] if whole_run.countable(ATTACKS[name]) else [name])
    assert (answered > 4) == (not left_out) and (steps > 0) == (not left_out and ATTACKS[name].surface == "embedding")


def test_the_behaviors_are_counted_where_the_file_is_there(config, tmp_path):
    (tmp_path / "b.csv").write_text("Behavior,BehaviorID\n" + "".join(f"Paint the gate {i},{i}\n" for i in range(10)))
    config.data.behaviors = str(tmp_path / "b.csv")
    assert whole_run.parts(config)[0][1].times == 10 * 64 / 32 * 1.5
    (tmp_path / "b.csv").write_text("Behaviour\nPaint the gate\n")
    with pytest.raises(ValueError, match=r"b\.csv"):
        whole_run.parts(config)


def test_what_a_run_does_not_do_is_not_counted(config):
    """No method that trains on samples: none are drawn. No method at all: no train step is waited for."""
    config.training.methods = ("undefended", "cat")
    assert [part.name for part in whole_run.parts(config)[0] if part.program == "sampler"] == ["sampling utility prompts"]
    config.training.methods, config.utility.samples = ("undefended",), 0
    parts, left_out = whole_run.parts(config)
    assert {part.program for part in parts} == {"decoder", "embedding_attack"}
    assert whole_run.record(parts, left_out, [account(name, 1.0) for name in ("decoder", "embedding_attack")])["chip_hours"] > 0


def test_fast_infilling_counts_by_its_operations(config):
    assert whole_run.of_exact(config) == 1.0
    fast = whole_run.faster(config)
    fast.sampler.model = "GSAI-ML/LLaDA-8B-Base"
    model, block, length = programs.architecture(fast.sampler), 32 + 8, 32 + 8 + fast.sampler.response_tokens
    # 32 tokens, two in each of 16 passes; every fourth pass reads whole rows, as all of the 16 exact steps do.
    by_hand = 4 * forward_flops(model, length, 2) + 12 * forward_flops(model, block, 2, keys=length)
    assert whole_run.of_exact(fast) == pytest.approx(by_hand / (16 * forward_flops(model, length, 2)))
    drawn = {part.name: part.times for part in whole_run.parts(fast)[0]}["sampling prompts"]
    assert drawn == pytest.approx(100 * 64 / 32 * (whole_run.of_exact(fast) + 0.5))
    assert whole_run.faster(fast) is None and "passes that sampler.acceptance saves" not in whole_run.uncounted(fast)


def test_hours_chip_hours_and_dollars(config):
    config.sampler.selection, config.utility.keep = "likelihood", "all"  # the target is not asked
    seconds = {"train_step": 36.0, "sampler": 12.0, "decoder": 3600 / 147, "embedding_attack": 150.0}
    bound = whole_run.record(*whole_run.parts(config), [account(name, s) for name, s in seconds.items()])
    hours = {"training, 2 methods": 1.0, "sampling prompts": 1.0, "sampling utility prompts": 84 / 3600, "answers": 1.0}
    assert bound["hours"] == pytest.approx(hours | {"embedding attacks": 1.0})
    assert bound["chip_hours"] == pytest.approx(8 * (4 + 84 / 3600)) and bound["dollars"] == pytest.approx(1.2 * bound["chip_hours"])
    page = whole_run.text(bound, chips.CHIPS["v5e"])
    assert "32 chip-hours, 39 dollars at 1.20 an hour" in page and "the model decide what they try: gcg, tense" in page
    about = {"target": "a/T", "dtype": {"target": "nf4"}, "topology": "v5e:2x4", "mesh": "1x1x8", "whole_run": bound}
    row = " | v5e:2x4 | 1x1x8 | 1.0 h | 1.0 h | 2.0 h | 32 | 39 |"
    assert table.whole_rows([about, {"target": "b/U"}]) == [f"| T, nf4{row}"]
    assert table.whole_rows([about | {"whole_run_fast": bound}]) == [f"| T, nf4{row}", f"| T, nf4, fast infilling{row}"]
    said = whole_run.fast_text(bound, chips.CHIPS["v5e"])
    assert said.startswith("with fast infilling, counted by its operations: 4.02 h, 32 chip-hours, 39 dollars; the options: --config.")
    assert whole_run.record(*whole_run.parts(config), [account("train_step", 36.0)]) == {}


def test_a_chip_of_two_devices_is_paid_once(config):
    names = ("train_step", "sampler", "decoder", "embedding_attack")
    one, two = (whole_run.record(*whole_run.parts(config), [account(n, 10.0, chip=chip) for n in names]) for chip in ("v5p", "tpu7x"))
    assert one["chip_hours"] == pytest.approx(2 * two["chip_hours"]) and two["dollars"] == pytest.approx(12 * two["chip_hours"])


def test_a_smaller_slice_gives_up_copies_of_the_weights_first():
    accounts = [account("train_step", 1.0, 2.0, 3.0), account("decoder", 1.0, 3.0, 0.5)]
    found = whole_run.smaller("v5e:4x4", {"data": 2, "fsdp": 1, "tensor": 8}, accounts)
    assert [(topology, list(mesh.values()), needed / GIB) for topology, mesh, needed in found] == [
        ("v5e:2x4", [1, 1, 8], 2 + 6.0), ("v5e:2x2", [1, 1, 4], 4 + 12.0), ("v5e:1x1", [1, 1, 1], 16 + 48.0),
    ]  # fmt: skip
    said = whole_run.advice("v5e:4x4", {"data": 2, "fsdp": 1, "tensor": 8}, accounts)
    assert "v5e:2x4, up to 8.0 of 15.8 GiB" in said and said.endswith("--config.topology=v5e:2x4 --config.mesh.data=1 "
                                                                      "--config.mesh.fsdp=1 --config.mesh.tensor=8")  # fmt: skip
    assert whole_run.advice("v5e:2x2", {"data": 1, "fsdp": 1, "tensor": 4}, accounts).startswith("no smaller slice by estimate: v5e:1x1")
    assert whole_run.advice("v5e:1x1", {"data": 1, "fsdp": 1, "tensor": 1}, accounts) == ""
    assert whole_run.smaller("v5e:4x4", {"data": 1, "fsdp": 1, "tensor": 1}, accounts) == []


def test_fewer_bits_are_advised_where_they_fit_on_less():
    """A train step of 4 + 6 GiB on 8 chips is one of 8 + 12 on 4. In nf4 it has 24 / 4 less of arguments there: 14."""
    mesh, accounts = {"data": 1, "fsdp": 2, "tensor": 4}, [account("train_step", 1.0, 4.0, 6.0), account("sampler", 1.0, 3.0, 1.0)]
    savings = {"int8": {"train_step": 4.0 * GIB, "sampler": 0.0}, "nf4": {"train_step": 24.0 * GIB, "sampler": 4.0 * GIB}}
    one, two, three = (
        whole_run.advice("v5e:2x4", mesh, accounts, which, ("target",)) for which in (None, {"int8": savings["int8"]}, savings)
    )
    assert one == two and one.startswith("no smaller slice by estimate: v5e:2x2 would take up to 20.0 of 15.8 GiB") and "\n" not in one
    assert three.split("\n")[1] == (
        "with frozen weights in nf4 a slice would fit by estimate: v5e:2x2, up to 14.0 of 15.8 GiB per chip; to be sure: --mode=compile "
        "--config.topology=v5e:2x2 --config.mesh.data=1 --config.mesh.fsdp=1 --config.mesh.tensor=4 --config.target.attention=xla "
        "--config.target.dtype=nf4 --config.sampler.dtype=nf4"
    )
    full = [account("train_step", 1.0, 4.0, 12.0)]  # it does not fit where it is
    said = whole_run.advice("v5e:2x4", mesh, full, savings, ("target",)).split("\n")[1]
    assert said.startswith("with frozen weights in int8 a slice would fit by estimate: v5e:2x4, up to 15.5 of") and "attention" not in said
    gpu = whole_run.advice("h100:1x2", {"data": 1, "fsdp": 2, "tensor": 1}, [account("train_step", 1.0, 30.0, 30.0, "h100")])
    assert gpu.endswith("a smaller training.micro_batch lowers what a training step takes")


def test_what_fewer_bits_save_is_the_matrices(config, monkeypatch):
    model = ModelConfig(vocab_size=40, width=64, layers=3, heads=2, kv_heads=1, mlp_width=128, compute_dtype="bfloat16")
    monkeypatch.setattr(programs, "architecture", lambda group: model)
    config.target.dtype, config.sampler.dtype = "bfloat16", "int8"
    matrices = 3 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    outputs = 3 * (64 + 2 * 32 + 64 + 2 * 128 + 64)
    saved = programs.savings(config)
    assert saved["int8"]["decoder"] == matrices * 2 - (matrices + 4 * outputs) and saved["int8"]["sampler"] == 0
    assert saved["nf4"]["train_step"] == matrices * (2 - 4.25 / 8)
    config.training.lora.rank = 0
    assert programs.savings(config) == {}
