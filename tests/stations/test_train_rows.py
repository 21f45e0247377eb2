"""What a method is trained on besides requests and samples: rewrites of the training behaviors, and the target's own refusals."""

import json
import types

import pytest

from dat_jax import stations
from dat_jax.data.behaviors import load_behaviors
from dat_jax.judges.judge import Verdict
from dat_jax.methods import METHODS
from dat_jax.stations import inputs, sample_utility, train, workdir


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def read(config, tmp_path):
    def reading(**data):
        config.training.methods = ("mixat",)
        config.data.update(data)
        return inputs.read_inputs(config, tmp_path, 0)

    return reading


def test_rewrites_of_the_training_behaviors_are_read_or_made_by_rules(read, config, tmp_path):
    path = lines(tmp_path / "r.jsonl", {"id": "paint_drum", "rewrite": "past", "prompt": "How was the drum painted?"})
    assert [r.prompt for r in read(train_rewrites=path).train_rewrites] == ["How was the drum painted?"]
    (known,) = workdir.contents(config)["data.train_rewrites"]  # a training that goes on does so on the same rewrites
    assert known["file"] == path
    made = read(train_rewrites="").train_rewrites
    assert {r.behavior for r in made} == {f"{verb}_{thing}" for verb in ("paint", "wash", "fold") for thing in ("drum", "gate")}
    assert {r.form for r in made} == {"past", "future", "polite", "indirect", "story"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "paint_kite"}, r"id 'paint_kite' is no training behavior; allowed: those of .*train\.csv"),
        ({"id": "paint_drum", "held_out": True}, r"the form 'past' is held out; allowed for training: held_out false"),
    ],
)
def test_rewrites_that_cannot_be_trained_on(read, tmp_path, row, message):
    path = lines(tmp_path / "r.jsonl", {"rewrite": "past", "prompt": "How was it done?"} | row)
    with pytest.raises(ValueError, match=r"r\.jsonl \(config\.data\.train_rewrites\): " + message):
        read(train_rewrites=path)


def test_a_method_on_rewrites_where_no_rule_applies(read, tmp_path):
    (tmp_path / "train.csv").write_text("Behavior,BehaviorID\nThe drum\tis painted,a\n")
    (tmp_path / "train.json").write_text('{"a": "Sure"}')
    with pytest.raises(ValueError, match=r"names .mixat., which trains on rewrites, and no rule applies to a training behavior; allowed"):
        read(behaviors=f"{tmp_path}/train.csv", targets=f"{tmp_path}/train.json", train_rewrites="")


def test_nothing_is_read_for_methods_that_train_on_no_rewrites(config, tmp_path):
    config.data.train_rewrites = ""
    config.training.methods = ("cat",)
    assert inputs.read_inputs(config, tmp_path, 0).train_rewrites == []


def test_own_answers_that_are_refusals_become_the_refusals(config, tmp_path, monkeypatch):
    """The first behavior's answer is a refusal; the second complied, and keeps the refusal that it came with."""
    config.training.methods = ("self_consistency",)
    found = inputs.read_inputs(config, tmp_path, 0)
    asked = []

    def answers(victim, attempts, path, name):
        asked.extend(attempt.prompt for attempt in attempts)
        assert (path, name) == (tmp_path / "own_refusals.jsonl", "own refusals")
        return ["No, I will not." if attempt.behavior == "paint_drum" else "Gladly." for attempt in attempts]

    def judge(exchanges):
        return [Verdict("refuse" if exchange.response.startswith("No") else "comply", 0.0) for exchange in exchanges]

    monkeypatch.setattr(train, "Victim", lambda *_: None)
    monkeypatch.setattr(sample_utility, "asked", answers)
    monkeypatch.setattr(train.judges, "load", lambda *_: judge)
    behaviors = train.own_refusals(found, None, None)
    given = {b.id: b.refusals for b in load_behaviors(config.data.behaviors, config.data.targets)}
    assert asked == [b.text for b in found.behaviors]
    assert {b.id: b.refusals for b in behaviors} == given | {"paint_drum": ("No, I will not.",)}
    monkeypatch.setattr(train.judges, "load", lambda *_: pytest.fail("another judge would change the rows of a training that goes on"))
    assert train.own_refusals(found, None, None) == behaviors
    monkeypatch.setattr(train.judges, "load", lambda *_: judge)
    monkeypatch.setattr(sample_utility, "asked", lambda victim, attempts, path, name: ["Gladly."] * len(attempts))
    message = r"config\.training\.methods names self_consistency, which learns the target's own refusals, and refusal_prefix takes none "
    with pytest.raises(ValueError, match=message + r"of its answers to the 6 training requests for one .*own_refusals\.jsonl.*; allowed:"):
        train.own_refusals(found, None, None)


def test_a_target_that_refuses_nothing_is_an_error_before_the_first_training(config, tmp_path):
    """A model of random weights."""
    config.training.methods = ("refusal_sft", "self_consistency")
    with pytest.raises(ValueError, match=r"names self_consistency, which learns the target's own refusals"):
        stations.run("train", config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "seed_0" / "refusal_sft").exists()


def test_one_refusal_for_all_behaviors_is_said(config, tmp_path, caplog):
    """Where no file brings refusals; a file that does brings no such line."""
    inputs.read_inputs(config, tmp_path, 0)
    (said,) = [record.getMessage() for record in caplog.records if "refusal" in record.getMessage()]
    assert said.startswith("6 of 6 training behaviors came without a refusal, and all of these teach one sentence, ")
    caplog.clear()
    texts = [b.text for b in load_behaviors(config.data.behaviors, config.data.targets)]
    (tmp_path / "safe.csv").write_text("Behavior,Safe_Response\n" + "".join(f"{text},No: {text}\n" for text in texts))
    config.data.safe_responses = str(tmp_path / "safe.csv")
    inputs.read_inputs(config, tmp_path, 0)
    assert not [record for record in caplog.records if "came without a refusal" in record.getMessage()]


@pytest.mark.slow
def test_methods_of_every_kind_are_trained_and_seen_to_the_end(config, tmp_path, monkeypatch):
    """Rewrites, own refusals, several updates at deeper sites and a reference: one run of two steps, and what it leaves."""
    config.training.methods = ("mixat", "self_consistency", "lat", "dat_circuit_breakers", "capo", "derta")
    config.training.update({"steps": 2, "watch_every": 0})
    config.methods.lat.perturbation.update({"sites": (0, 1), "steps": 1})
    config.methods.lat.updates = 2
    config.methods.circuit_breakers.layers = (1,)
    for name in ("mixat", "self_consistency", "capo"):
        config.methods[name].perturbation.steps = 1
    # A model of random weights refuses nothing, and this judge says that it does.
    refuses = types.SimpleNamespace(load=lambda *_: lambda exchanges: [Verdict("refuse", 0.0)] * len(exchanges))
    monkeypatch.setattr(train, "judges", refuses)
    assert stations.run("sample,train", config, str(tmp_path / "run")) == 0
    for name in config.training.methods:
        finished = json.loads((tmp_path / "run" / "seed_0" / name / "finished.json").read_text())
        content = finished.get("content", finished)
        assert (content["steps"], content["skipped"]) == (2, 0) and content["flops"] > 0
        assert ("asking_flops" in content) == (name == "self_consistency")  # its refusals are the target's answers, which cost something
        metrics = [json.loads(line) for line in (tmp_path / "run" / "seed_0" / name / "metrics.jsonl").read_text().splitlines()]
        assert {term.key for term in METHODS[name].terms} <= set(metrics[-1])
    assert (tmp_path / "run" / "seed_0" / "own_refusals.jsonl").exists()
