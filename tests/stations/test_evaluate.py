"""The runner: files and their schema, resuming, the same attempts for every method, and refusing to mix settings or weights."""

import json

import jax
import pytest
from ml_collections import ConfigDict

from dat_jax.data.behaviors import Behavior
from dat_jax.evaluation import report, runner
from dat_jax.evaluation.attacks.rewrites import Rewrite
from dat_jax.evaluation.utility import UtilityPrompt
from dat_jax.models.huggingface import Model

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("wash the door",), ("no",))]
REWRITES = [Rewrite("1", "past", "how did people paint the wood"), Rewrite("1", "x", "a b"), Rewrite("2", "x", "c d", True),
            Rewrite("train", "past", "never")]  # fmt: skip
SETS = {"benign": [UtilityPrompt("u", "a b c", "d e"), UtilityPrompt("v", "d")], "borderline": [UtilityPrompt("w", "paint")], "unsafe": []}


@pytest.fixture
def config():
    config = ConfigDict({"data": dict(prompt_length=16, response_length=5, perturb="user", system=None), "evaluation": runner.defaults()})
    config.evaluation.update(best_of_n=2, prefill_words=1, max_new_tokens=4, batch_size=2)
    config.evaluation.attack.update(steps=2)
    return config


def judge(behavior, response):
    return "comply" if len(response) % 2 else "refuse"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(model, config, folder, **changes):
    said = []
    arguments = dict(
        method="dat", seed=3, model=model, behaviors=BEHAVIORS, rewrites=REWRITES, utility_sets=SETS, judge=judge, config=config,
        folder=folder, report=said.append,
    )  # fmt: skip
    runner.evaluate(**(arguments | changes))
    return said


def test_files_resume_and_report(small_model, config, tmp_path):
    folder = tmp_path / "seed_3" / "evaluation" / "dat"
    finished = (3, BEHAVIORS, REWRITES, SETS, config, folder)
    assert not runner.finished(*finished)
    said = evaluate(small_model, config, folder)
    assert said[0] == "evaluate dat, seed 3: 10 of 10 attacks and utility sets to do" and "finished" in said[-1]
    assert runner.finished(*finished)
    names = ["best_of_n", "direct", "embedding", "embedding+rewrite-past", "embedding+rewrite-x", "prefill", "rewrite-past", "rewrite-x"]
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == names
    past = lines(folder / "rewrite-past.jsonl")
    assert [line["behavior"] for line in past] == ["1"]
    assert set(past[0]) == {"method", "attack", "seed", "behavior", "prompt", "prefill", "response", "label"}
    assert past[0]["attack"] == "rewrite:past" and past[0]["label"] == judge("1", past[0]["response"])
    assert [line["prefill"] for line in lines(folder / "prefill.jsonl")] == ["with", "wash"]
    benign = lines(folder / "utility" / "benign.jsonl")
    assert [line["exact"] for line in benign] == [False, None] and benign[0]["expected"] == "d e"
    assert not (folder / "utility" / "unsafe.jsonl").exists()

    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    text = (folder / "embedding.jsonl").read_text()
    (folder / "embedding.jsonl").unlink()
    assert evaluate(small_model, config, folder)[0].startswith("evaluate dat, seed 3: 1 of 10")
    assert (folder / "embedding.jsonl").read_text() == text
    assert all(path.stat().st_mtime_ns == before[path.name] for path in folder.glob("*.jsonl") if path.stem != "embedding")
    assert len(evaluate(small_model, config, folder)) == 1

    page = report.write(tmp_path, ConfigDict({"methods": ("dat",), **config.to_dict()}))
    assert page.exists() and "Rewrite: x *" in page.read_text()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["attack"], row["behaviors"]) for row in rows} >= {("worst_case", 2), ("rewrite:past", 1), ("rewrite:x", 2)}


def test_every_method_gets_the_same_attempts(small_model, config, tmp_path):
    other = Model(jax.tree.map(lambda leaf: leaf * 1.5, small_model.params), small_model.config, small_model.tokenizer)
    evaluate(small_model, config, tmp_path / "cat", method="cat")
    evaluate(other, config, tmp_path / "dat")
    for path in (tmp_path / "cat").glob("*.jsonl"):
        pair = [[(x["behavior"], x["prompt"], x["prefill"]) for x in lines(tmp_path / name / path.name)] for name in ("cat", "dat")]
        assert pair[0] == pair[1]


def test_mixing_is_refused(small_model, config, tmp_path):
    config.evaluation.attacks = ("direct",)
    evaluate(small_model, config, tmp_path)
    config.evaluation.batch_size = 3  # changes no result
    evaluate(small_model, config, tmp_path)
    other = Model(jax.tree.map(lambda leaf: leaf + 1e-3, small_model.params), small_model.config, small_model.tokenizer)
    with pytest.raises(ValueError, match=r"checksum\.weights was"):
        evaluate(other, config, tmp_path)
    with pytest.raises(ValueError, match=r"checksum\.attempts was"):
        evaluate(small_model, config, tmp_path, behaviors=BEHAVIORS[:1])
    config.evaluation.max_new_tokens = 5
    with pytest.raises(ValueError, match=r"evaluation\.max_new_tokens was 4 and is now 5; use another --workdir"):
        evaluate(small_model, config, tmp_path)


def test_limits_and_forms(small_model, config, tmp_path):
    config.evaluation.update(behaviors=1, forms=("x",), utility_prompts=1)
    config.evaluation.attacks = ("direct", "rewrite", "prefill+rewrite", "embedding+rewrite")
    plans = {plan.name: plan for plan in runner.plan(BEHAVIORS, REWRITES, config.evaluation, 0)}
    assert list(plans) == ["direct", "rewrite:x", "prefill+rewrite:x", "embedding+rewrite:x"]
    assert [(attempt.prompt, attempt.prefill) for attempt in plans["prefill+rewrite:x"].attempts] == [("a b", "with"), ("c d", "wash")]
    assert [plan.perturbed for plan in plans.values()] == [False, False, False, True]
    evaluate(small_model, config, tmp_path)
    assert len(lines(tmp_path / "direct.jsonl")) == 1 and len(lines(tmp_path / "utility" / "benign.jsonl")) == 1
    config.evaluation.embedding_forms = ("klingon",)
    with pytest.raises(ValueError, match=r"config\.evaluation\.embedding_forms names 'klingon'; the rewrites .* have past, x"):
        runner.plan(BEHAVIORS, REWRITES, config.evaluation, 0)


def test_no_behaviors(small_model, config, tmp_path):
    with pytest.raises(ValueError, match="no behavior to evaluate"):
        evaluate(small_model, config, tmp_path, behaviors=[])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attacks", ("direkt",)),
        ("attacks", ()),
        ("best_of_n", 0),
        ("sigma", 0.0),
        ("batch_size", 0),
        ("judge", "llama"),
        ("temperature", -1.0),
    ],
)
def test_validation_names_the_key(config, key, value):
    config.evaluation[key] = value
    with pytest.raises(ValueError, match=rf"config\.evaluation\.{key} is"):
        runner.validate(config.evaluation)


def test_defaults_are_valid():
    runner.validate(runner.defaults())
    bad = runner.defaults()
    bad.attack.radius = -1.0
    with pytest.raises(ValueError, match=r"config\.evaluation\.attack\.radius"):
        runner.validate(bad)
