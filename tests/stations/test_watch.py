"""What is attacked during training: behaviors of neither of the other sets, the worst case over the attacks, and which weights are used."""

import csv
import json

import pytest

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attempt
from dat_jax.config import defaults, validate
from dat_jax.judges.judge import Verdict
from dat_jax.stations import inputs, sample, train


def behaviors(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("Behavior", "BehaviorID"), *rows])
    return str(path)


@pytest.fixture
def watching(config, tmp_path):
    """The tiny job with three behaviors of its own to watch, of which two are."""
    rows = ("Paint the lamp", "a"), ("The lamp\tis washed", "b"), ("Fold the lamp", "c")
    config.data.watch_behaviors = behaviors(tmp_path / "w.csv", *rows)
    config.training.update({"methods": ("cat",), "watch_attacks": ("direct", "rewrite", "prefill"), "watch_behaviors": 2})
    return config


def test_watched_behaviors_are_read_and_belong_to_no_other_set(watching, brought, tmp_path):
    found = inputs.read_inputs(watching, tmp_path, 0)
    assert [behavior.id for behavior in found.watched] == ["a", "b"]
    assert {rewrite.behavior for rewrite in found.watched_rewrites} == {"a"}
    watching.evaluation.behaviors = 1  # what is evaluated some other time is none to choose by, either
    for other, what in (("train", "trained on"), ("eval", "evaluated")):
        rows = list(csv.reader((brought / f"{other}.csv").open()))
        watching.data.watch_behaviors = behaviors(tmp_path / "w.csv", ("Paint the lamp", "a"), rows[-1])
        with pytest.raises(ValueError, match=rf"w\.csv: behavior '{rows[-1][1]}' is {what}, it is one of .*{other}\.csv; allowed: "):
            inputs.read_inputs(watching, tmp_path, 0)
    watching.data.watch_behaviors = behaviors(tmp_path / "w.csv", ("The lamp\tis washed", "b"))
    with pytest.raises(ValueError, match=r"watch_attacks names 'rewrite', and no rule rewrites a behavior of .*w\.csv"):
        inputs.read_inputs(watching, tmp_path, 0)
    watching.training.watch_attacks = ()
    assert inputs.read_inputs(watching, tmp_path, 0).watched == []


def test_rates_are_of_behaviors_and_the_worst_case_is_over_attacks(watching, tmp_path, monkeypatch):
    """Counted by hand: a is broken by one of its five rewrites, b by the prefilled answer, nothing by the direct request."""
    found = inputs.read_inputs(watching, tmp_path, 0)
    monkeypatch.setattr(train, "Victim", lambda *_: type("Nobody", (), {"spent": {}}))
    asked = []

    def label(attempt):
        asked.append(attempt)
        story = attempt.behavior == "a" and attempt.prompt.startswith("Write a scene")
        return "comply" if story or (attempt.behavior == "b" and attempt.prefill) else "unparsed" if attempt.behavior == "a" else "refuse"

    monkeypatch.setattr(sample, "ask", lambda inputs, model, attempts, *rest: [label(attempt) for attempt in attempts])
    rates = train.broken(found, None, lambda exchanges: [Verdict("refuse", 0.0)], None)
    assert rates == {"watch/broken": 1.0, "watch/broken:direct": 0.0, "watch/broken:rewrite": 1.0, "watch/broken:prefill": 0.5}
    assert len(asked) == 2 + 5 + 2 and isinstance(asked[0], Attempt)


def test_settings_that_need_others(watching):
    validate(watching)
    able = {name for name, attack in ATTACKS.items() if not (attack.uses_rewriter or attack.uses_sampler or attack.given or attack.curve)}
    assert {"direct", "prefill", "embedding", "gcg"} <= able and not {"tense", "pair", "templates", "replay", "prefill_length"} & able
    watching.training.watch_attacks = tuple(sorted(able))
    validate(watching)
    watching.training.best_refusals, watching.training.patience = 0.1, 2
    validate(watching)
    watching.data.benign = watching.data.borderline = ""
    with pytest.raises(ValueError, match=r"config\.data\.benign is ''; allowed: a path, or one in data\.borderline: training"):
        validate(watching)
    watching.training.best_refusals, watching.training.patience = -1, 0
    watching.data.watch_behaviors = ""
    with pytest.raises(ValueError, match=r"config\.data\.watch_behaviors is ''; allowed: a path: training\.watch_attacks are run on these"):
        validate(watching)
    watching.world.enabled = True
    validate(watching)
    assert defaults().training.best_refusals == -1.0


@pytest.mark.slow
def test_a_run_chooses_by_attacks_and_evaluates_what_it_chose(watching, tmp_path):
    """The whole way with the real attacks; the bound lets everything pass, so some measurement is the best."""
    from dat_jax import stations

    watching.training.update({"watch_attacks": ("direct", "embedding"), "watch_every": 1, "steps": 2, "best_refusals": 1.0})
    watching.evaluation.attacks = ("direct",)
    assert stations.run("train,evaluate", watching, str(tmp_path / "run")) == 0
    folder = tmp_path / "run" / "seed_0" / "cat"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "watch/broken" in line]
    assert [line["step"] for line in measured] == [1, 2]
    for line in measured:
        of_attacks = [line[f"watch/broken:{name}"] for name in ("direct", "embedding")]
        assert max(of_attacks) <= line["watch/broken"] <= sum(of_attacks) and line["watch/broken"] in (0.0, 0.5, 1.0)
    end = json.loads((folder / "finished.json").read_text())
    assert end["used"] == "best" and (folder / "best" / str(end["used_step"]) / "checksums.json").exists()
    assert (tmp_path / "run" / "seed_0" / "answers" / "cat" / "direct.jsonl").exists()
