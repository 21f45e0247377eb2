"""Answers: files and their schema, what is new is computed and nothing else, a killed call goes on, and nothing is mixed."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks import victim as victim_lib
from dat_jax.attacks.attack import Attack, Attempt, Stopped
from dat_jax.config import defaults
from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.data.utility import UtilityPrompt
from dat_jax.models.huggingface import Model
from dat_jax.stations import evaluate, store
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import Subject

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("no",)), Behavior("2", "wash the door", ("wash the door",), ("no",))]
MORE = [*BEHAVIORS, *(Behavior(word, f"paint {word}", ("with a brush",), ("no",)) for word in ("x", "y", "z"))]
REWRITES = [Rewrite("1", "past", "how did people paint the wood"), Rewrite("1", "x", "a b"), Rewrite("2", "x", "c d", True)]
SETS = {"benign": [UtilityPrompt("u", "a b c", "d e"), UtilityPrompt("v", "d")], "borderline": [UtilityPrompt("w", "paint")], "unsafe": []}


@pytest.fixture
def config():
    config = defaults()
    config.data.update({"prompt_length": 16, "response_length": 5})
    config.evaluation.update({"max_new_tokens": 4, "batch_size": 2})
    config.attacks.best_of_n.attempts, config.attacks.prefill.words, config.attacks.embedding.perturbation.steps = 2, 1, 2
    return config


@pytest.fixture
def answer(config, tmp_path, monkeypatch, caplog):
    """answer(*models, **what else a run reads) -> the log's lines; the models are called dat, cat, ... and asked in this order."""
    caplog.set_level(logging.INFO)

    def run(*models, seed=3, **changes):
        found = [Subject(name, name, lambda target, model=model: model) for name, model in zip(("dat", "cat"), models)]
        monkeypatch.setattr(evaluate, "subjects", lambda inputs, mesh: found)
        read = {"behaviors": [], "eval_behaviors": BEHAVIORS, "chats": [], "rewrites": REWRITES, "utility_sets": SETS}
        inputs = Inputs(config=config, folder=tmp_path / f"seed_{seed}", seed=seed, **(read | changes))
        mesh = sharding.make_mesh(1, 1, 1)
        caplog.clear()
        with jax.set_mesh(mesh):
            evaluate.run(inputs, mesh)
        return caplog.messages

    return run


@pytest.fixture
def folder(tmp_path):
    """Where the answers of the model under attack are."""
    return tmp_path / "seed_3" / "answers" / "dat"


@pytest.fixture
def asked(monkeypatch):
    """The attempts that reached a model, one list per call."""
    calls, whole = [], evaluate.Victim.answer

    def noting(victim, attempts, *rest):
        calls.append([(attempt.behavior, attempt.prompt) for attempt in attempts])
        return whole(victim, attempts, *rest)

    monkeypatch.setattr(evaluate.Victim, "answer", noting)
    return calls


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def about(path):
    return manifest.read(path.with_suffix(".json"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def other_weights(model):
    return Model(jax.tree.map(lambda leaf: leaf + 1e-3, model.params), model.config, model.tokenizer)


def test_files_their_schema_and_a_second_call(small_model, answer, folder, asked):
    said = answer(small_model)
    assert said[0] == "evaluate dat, seed 3: 10 of 10 attacks and utility sets to do" and "finished" in said[-1]
    names = ["best_of_n", "direct", "embedding", "embedding+rewrite-past", "embedding+rewrite-x", "prefill", "rewrite-past", "rewrite-x"]
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == sorted(path.stem for path in folder.glob("*.json")) == names
    past = lines(folder / "rewrite-past.jsonl")
    assert [line["behavior"] for line in past] == ["1"]
    assert set(past[0]) == {"method", "attack", "surface", "seed", "behavior", "prompt", "prefill", "response"}
    assert (past[0]["method"], past[0]["attack"], past[0]["surface"], past[0]["seed"]) == ("dat", "rewrite:past", "text", 3)
    assert [line["prefill"] for line in lines(folder / "prefill.jsonl")] == ["with", "wash"]
    assert {line["surface"] for line in lines(folder / "embedding.jsonl")} == {"embedding"}
    assert [line["behavior"] for line in lines(folder / "best_of_n.jsonl")] == ["1", "1", "2", "2"]
    benign = lines(folder / "utility" / "benign.jsonl")
    assert [line["exact"] for line in benign] == [False, None] and benign[0]["expected"] == "d e"
    assert not (folder / "utility" / "unsafe.jsonl").exists()
    found = about(folder / "rewrite-x.jsonl")
    assert (found["attack"], found["title"], found["surface"], found["held_out"]) == ("rewrite:x", "Rewrite", "text", True)
    assert list(found["done"]) == found["asked"] == ["1", "2"] and not about(folder / "rewrite-past.jsonl")["held_out"]
    assert found["made_with"]["decoding"]["max_new_tokens"] == 4
    assert about(folder / "best_of_n.jsonl")["made_with"]["settings"] == {"attempts": 2, "sigma": 0.4, "temperature": 1.0}

    costs = {name: about(folder / f"{name}.jsonl")["cost"] for name in ("direct", "best_of_n", "embedding")}
    assert {name: cost["answers"] for name, cost in costs.items()} == {"direct": 2, "best_of_n": 4, "embedding": 2}
    assert costs["embedding"]["flops"] > costs["best_of_n"]["flops"] == 2 * costs["direct"]["flops"] > 0

    before = stamps(folder)
    asked.clear()
    assert answer(small_model) == ["evaluate dat, seed 3: done"]
    assert asked == [] and stamps(folder) == before


@pytest.mark.parametrize(("name", "gone"), [("embedding", (".jsonl",)), ("embedding", (".json",)), ("utility/benign", (".json", ".jsonl"))])
def test_a_file_that_is_gone_is_answered_again_alone(small_model, answer, folder, config, name, gone):
    config.evaluation.attacks = ("direct", "embedding")
    answer(small_model)
    text, before = (folder / f"{name}.jsonl").read_text(), stamps(folder)
    for suffix in gone:
        (folder / f"{name}{suffix}").unlink()
    said = answer(small_model)
    assert "evaluate dat, seed 3: 1 of 4 attacks and utility sets to do" in said
    assert any("is not, lost or not written before a kill: made again" in line for line in said) == (len(gone) == 1)
    assert (folder / f"{name}.jsonl").read_text() == text
    changed = {path for path, stamp in stamps(folder).items() if before.get(path) != stamp}
    assert changed == {folder / f"{name}.jsonl", folder / f"{name}.json"}


def test_every_model_gets_the_same_attempts(small_model, answer, folder):
    answer(small_model, other_weights(small_model))
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    assert len(names) == 8 and sorted(path.name for path in (folder.parent / "cat").glob("*.jsonl")) == names
    for name in names:
        pair = [
            [(x["behavior"], x["prompt"], x["prefill"]) for x in lines(folder.parent / model / name)] for model in ("cat", "dat")
        ]  # fmt: skip
        assert pair[0] == pair[1]


def test_an_attack_that_is_added_is_the_only_one_computed(small_model, answer, folder, config, asked):
    config.evaluation.attacks = ("direct", "rewrite")
    answer(small_model, utility_sets={})
    before = stamps(folder)
    asked.clear()
    config.evaluation.attacks = ("direct", "prefill", "rewrite")
    assert answer(small_model, utility_sets={})[0] == "evaluate dat, seed 3: 1 of 4 attacks and utility sets to do"
    assert asked == [[("1", "paint the wood"), ("2", "wash the door")]]
    assert {path: stamps(folder)[path] for path in before} == before and len(lines(folder / "prefill.jsonl")) == 2


def test_variants_that_are_added_are_the_only_ones_computed(small_model, answer, folder, config, asked):
    """Which forms, radii and lengths are tried shapes no answer: in a finished run more of them may be asked for."""
    config.evaluation.attacks = ("prefill", "prefill_words", "embedding", "embedding+rewrite", "embedding_radius")
    config.attacks.prefill.lengths, config.attacks.embedding.radii, config.attacks.embedding.forms = (1,), (0.5,), ("x",)
    answer(small_model, utility_sets={})
    before = stamps(folder)
    asked.clear()
    config.attacks.prefill.lengths, config.attacks.embedding.radii, config.attacks.embedding.forms = (1, 2), (0.5, 1.0), ("past", "x")
    assert answer(small_model, utility_sets={})[0] == "evaluate dat, seed 3: 3 of 8 attacks and utility sets to do"
    assert len(asked) == 3 and {path: stamps(folder)[path] for path in before} == before
    new = {path.name for path in folder.glob("*.jsonl")} - {path.name for path in before}
    assert new == {"prefill_words-2.jsonl", "embedding_radius-1.jsonl", "embedding+rewrite-past.jsonl"}
    config.attacks.embedding.perturbation.steps = 3
    with pytest.raises(ValueError, match=r"embedding\.json was made with settings\.perturbation\.steps = 2, now it is 3"):
        answer(small_model, utility_sets={})


def test_latent_attacks_are_answered_and_kept_like_the_others(small_model, answer, folder, config, asked):
    config.evaluation.attacks, config.attacks.latent.perturbation.steps = ("latent", "latent+rewrite", "latent_site"), 2
    answer(small_model, utility_sets={})
    names = ["latent", "latent+rewrite-past", "latent+rewrite-x", "latent_site-0", "latent_site-1"]
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == names
    assert {line["surface"] for name in names for line in lines(folder / f"{name}.jsonl")} == {"latent"}
    found = about(folder / "latent_site-1.jsonl")
    assert found["curve"] == "site of the perturbation" and found["made_with"]["settings"]["perturbation"]["sites"] == [1]
    asked.clear()
    config.attacks.latent.sites_tried = (1,)
    assert answer(small_model, utility_sets={}) == ["evaluate dat, seed 3: done"] and asked == []


def test_behaviors_that_are_added_are_the_only_ones_asked(small_model, answer, folder, config, asked):
    config.evaluation.attacks = ("direct", "best_of_n")
    answer(small_model, eval_behaviors=MORE)
    whole = {name: (folder / f"{name}.jsonl").read_text() for name in ("direct", "best_of_n")}
    for path in folder.glob("*.json*"):
        path.unlink()
    answer(small_model, eval_behaviors=MORE[1:3])
    asked.clear()
    answer(small_model, eval_behaviors=MORE)
    assert {behavior for call in asked for behavior, _ in call} == {"1", "y", "z"}
    for name, text in whole.items():
        assert (folder / f"{name}.jsonl").read_text() == text  # in the order of the behaviors, whatever was asked first
        assert about(folder / f"{name}.jsonl")["asked"] == [behavior.id for behavior in MORE]
    asked.clear()
    answer(small_model, eval_behaviors=MORE[:2])  # fewer: what is there stays, and the report counts what is asked for
    assert asked == [] and (folder / "direct.jsonl").read_text() == whole["direct"]
    assert about(folder / "direct.jsonl")["asked"] == ["1", "2"]


def test_what_other_attacks_tried_on_a_model_is_perturbed_in_the_same_call(small_model, answer, folder, config, asked, monkeypatch):
    config.evaluation.attacks = ("direct", "rewrite", "best_of_n", "embedding+text")
    config.attacks.embedding_text.update({"on": ("best_of_n", "rewrite:x"), "most": 2})
    config.attacks.embedding_text.perturbation.steps = 2
    kept, whole = evaluate.answers_lib.write, {}

    def killed(answers):
        kept(answers)
        if answers.about["attack"] == "best_of_n":
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.answers_lib, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        answer(small_model, utility_sets={})
    monkeypatch.setattr(evaluate.answers_lib, "write", kept)
    said = answer(small_model, utility_sets={})
    assert said[0] == "evaluate dat, seed 3: 2 of 6 attacks and utility sets to do"
    for name in ("best_of_n", "rewrite-x"):
        texts, perturbed = lines(folder / f"{name}.jsonl"), lines(folder / f"embedding+text-{name}.jsonl")
        assert [(line["behavior"], line["prompt"]) for line in perturbed] == [(line["behavior"], line["prompt"]) for line in texts]
        assert {line["surface"] for line in perturbed} == {"embedding"}
        whole[name] = perturbed
    asked.clear()
    config.evaluation.attacks = (*config.evaluation.attacks, "prefill")
    answer(small_model, utility_sets={})  # what is added later changes nothing
    assert len(asked) == 1 and {line["attack"] for line in lines(folder / "prefill.jsonl")} == {"prefill"}
    answer(small_model, utility_sets={}, eval_behaviors=MORE[:3])  # a behavior more
    assert lines(folder / "embedding+text-best_of_n.jsonl")[:4] == whole["best_of_n"]
    assert [line["behavior"] for line in lines(folder / "embedding+text-best_of_n.jsonl")[4:]] == ["x", "x"]
    config.attacks.embedding_text.on = ()
    inputs = Inputs(config=config, folder=folder.parent.parent, seed=3, behaviors=[], eval_behaviors=BEHAVIORS, chats=[], rewrites=REWRITES,
                    utility_sets={})  # fmt: skip
    assert list(evaluate.given.variants(inputs, ATTACKS["embedding+text"])) == ["best_of_n"]
    config.attacks.embedding_text.on = ("rewrite", "best_of_n", "rewrite:x")
    assert list(evaluate.given.variants(inputs, ATTACKS["embedding+text"])) == ["rewrite:past", "rewrite:x", "best_of_n"]
    config.attacks.embedding_text.on, config.evaluation.attacks = (), ("direct", "rewrite", "embedding+text")
    with pytest.raises(ValueError, match=r"has 'embedding\+text' and no text attack to put it on but direct, rewrite; allowed: a further"):
        evaluate.given.check(inputs)
    config.attacks.embedding_text.on, config.evaluation.attacks = ("gcg",), ("direct", "rewrite", "best_of_n", "embedding+text")
    with pytest.raises(ValueError, match=r"config\.attacks\.embedding_text\.on names 'gcg'; allowed: text attacks of config\.evaluation\."
                                         "attacks, direct, rewrite, best_of_n, rewrite:past, rewrite:x"):  # fmt: skip
        evaluate.given.check(inputs)


def test_what_was_not_tried_is_not_perturbed(small_model, answer, folder, config, monkeypatch):
    def refused(behaviors, victim, context):
        raise Stopped("the rewriter is down")

    row = dataclasses.replace(ATTACKS["tense"], attempts=refused, asks=None)
    monkeypatch.setitem(ATTACKS, "tense", row)
    config.evaluation.attacks = ("tense", "embedding+text")
    config.rewriter.model, config.attacks.tense.tenses = "x", ("past",)
    with pytest.raises(ValueError, match="the attack 'tense' was stopped: the rewriter is down"):
        answer(small_model, utility_sets={})
    assert not folder.exists() or not list(folder.glob("embedding*"))


def test_a_utility_prompt_that_is_added_is_the_only_one_asked(small_model, answer, folder, config, asked):
    config.evaluation.attacks = ("direct",)
    answer(small_model)
    asked.clear()
    answer(small_model, utility_sets=SETS | {"benign": [UtilityPrompt("n", "wood"), *SETS["benign"]]})
    assert asked == [[("n", "wood")]]
    assert [line["id"] for line in lines(folder / "utility" / "benign.jsonl")] == ["n", "u", "v"]


def test_mixing_is_refused(small_model, answer, folder, config):
    config.evaluation.attacks = ("direct", "best_of_n", "rewrite")
    answer(small_model)
    before = stamps(folder)
    config.evaluation.batch_size = 3  # changes no result
    answer(small_model)
    remedy = "delete that file to answer again, or use another --workdir"
    config.attacks.best_of_n.attempts = 3
    with pytest.raises(ValueError, match=rf"answers/dat/best_of_n\.json was made with settings\.attempts = 2, now it is 3; {remedy}"):
        answer(small_model)
    config.attacks.best_of_n.attempts, config.evaluation.max_new_tokens = 2, 5
    with pytest.raises(ValueError, match=rf"direct\.json was made with decoding\.max_new_tokens = 4, now it is 5; {remedy}"):
        answer(small_model)
    config.evaluation.max_new_tokens = 4
    edited = [BEHAVIORS[0], dataclasses.replace(BEHAVIORS[1], text="wash the doors")]
    with pytest.raises(ValueError, match=r"direct\.json was made with the checksum of 2 = '.{8}', now it is '.{8}'; the text was edited"):
        answer(small_model, eval_behaviors=edited)
    with pytest.raises(ValueError, match=r"rewrite-x\.json was made with the checksum of 1 ="):
        answer(small_model, rewrites=[dataclasses.replace(rewrite, prompt=f"{rewrite.prompt} y") for rewrite in REWRITES[1:]])
    with pytest.raises(ValueError, match=r"benign\.json was made with the checksum of v ="):
        answer(small_model, utility_sets={"benign": [SETS["benign"][0], UtilityPrompt("v", "e")]})
    with pytest.raises(
        ValueError, match=r"direct\.json was made with weights = '.{8}', now it is '.{8}'; it holds answers of other weights"
    ):
        answer(other_weights(small_model), eval_behaviors=MORE)
    assert stamps(folder) == before
    (folder / "best_of_n.json").unlink()  # as the remedy says
    config.attacks.best_of_n.attempts = 3
    answer(small_model)
    assert len(lines(folder / "best_of_n.jsonl")) == 6


def test_another_seed_draws_other_attempts(small_model, answer, folder, config, tmp_path):
    config.evaluation.attacks = ("best_of_n",)
    answer(small_model)
    answer(small_model, seed=4)
    one, other = (lines(f / "best_of_n.jsonl") for f in (folder, tmp_path / "seed_4" / "answers" / "dat"))
    assert all(a["prompt"] != b["prompt"] for a, b in zip(one, other)) and {line["seed"] for line in other} == {4}


def killed_at(monkeypatch, name, number):
    """Makes the so-many-th call of a Victim's method end as when the process is killed."""
    calls, whole = [], getattr(evaluate.Victim, name)

    def dying(victim, *arguments):
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return whole(victim, *arguments)

    monkeypatch.setattr(evaluate.Victim, name, dying)


@pytest.mark.parametrize("name", ["direct", "best_of_n", "embedding", "rewrite"])
def test_a_kill_within_an_attack_costs_one_batch_of_behaviors(small_model, answer, folder, config, name, monkeypatch):
    """Five behaviors in batches of two; the rewrites' first batch has no attempt at all."""
    config.evaluation.attacks = (name,)
    given = {"eval_behaviors": MORE, "utility_sets": {}, "rewrites": [Rewrite(id, "past", f"how did {id}") for id in ("x", "y", "z")]}
    answer(small_model, **given)
    file = "rewrite-past" if name == "rewrite" else name
    whole, done = (folder / f"{file}.jsonl").read_bytes(), about(folder / f"{file}.jsonl")
    for path in folder.glob("*"):
        path.unlink()
    with monkeypatch.context() as patch:
        killed_at(patch, "answer", 2)
        with pytest.raises(KeyboardInterrupt):
            answer(small_model, **given)
    assert list(about(folder / f"{file}.jsonl")["done"]) == ["1", "2"]
    calls, ask = [], evaluate.Victim.answer
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Victim, "answer", lambda victim, attempts, *rest: calls.append(attempts) or ask(victim, attempts, *rest))
        answer(small_model, **given)
    assert [list(dict.fromkeys(attempt.behavior for attempt in attempts)) for attempts in calls] == [["x", "y"], ["z"]]
    assert (folder / f"{file}.jsonl").read_bytes() == whole
    again, timed = about(folder / f"{file}.jsonl"), ("cost", "manifest")  # the cost holds seconds, and the manifest a checksum of it
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in done.items() if k not in timed}
    assert {k: again["cost"][k] for k in ("answers", "flops")} == {k: done["cost"][k] for k in ("answers", "flops")}


def test_a_kill_within_a_batch_costs_the_answers_since_they_were_saved(small_model, answer, folder, config, monkeypatch):
    """Ten sampled answers to two behaviors, two at a time: the three batches of answers before the kill are not given again."""
    config.evaluation.attacks, config.attacks.best_of_n.attempts = ("best_of_n",), 5
    given = {"utility_sets": {}, "rewrites": []}
    answer(small_model, **given)
    whole = (folder / "best_of_n.jsonl").read_bytes()
    calls, generate = [], victim_lib.generate

    def dying(*arguments, **keywords):
        calls.append(1)
        if len(calls) == dies:
            raise KeyboardInterrupt
        return generate(*arguments, **keywords)

    monkeypatch.setattr(victim_lib, "generate", dying)
    monkeypatch.setattr(store, "SAVE_EVERY", 0.0)

    def killed(number):
        nonlocal dies
        calls.clear()
        for path in folder.glob("*.json*"):
            path.unlink()
        dies = number
        with pytest.raises(KeyboardInterrupt):
            answer(small_model, **given)
        calls.clear()
        dies = 0

    dies = 0
    killed(4)
    assert [path.name for path in folder.glob("*")] == ["best_of_n.answered.npz"]
    answer(small_model, **given)
    assert len(calls) == 2 and (folder / "best_of_n.jsonl").read_bytes() == whole
    assert not list(folder.glob("*.npz"))
    killed(4)
    config.attacks.best_of_n.temperature = 0.5  # the same texts, asked otherwise
    answer(small_model, **given)
    assert len(calls) == 5 and (folder / "best_of_n.jsonl").read_bytes() != whole


def test_a_kill_between_lines_and_what_is_done_costs_one_batch(small_model, answer, folder, config, asked):
    config.evaluation.attacks = ("direct",)
    answer(small_model, eval_behaviors=MORE, utility_sets={})
    whole, found = (folder / "direct.jsonl").read_bytes(), answers_lib.read(folder / "direct")
    found.about["done"] = {id: found.about["done"][id] for id in ("1", "2")}
    found.lines = [line for line in found.lines if line["behavior"] in ("1", "2")]
    answers_lib.write(found)  # what stood there before the last batch
    (folder / "direct.jsonl").write_bytes(whole)
    asked.clear()
    answer(small_model, eval_behaviors=MORE, utility_sets={})
    assert [[behavior for behavior, _ in call] for call in asked] == [["x", "y"], ["z"]]
    assert (folder / "direct.jsonl").read_bytes() == whole


def test_progress_on_a_batch_comes_back_and_progress_on_another_does_not(tmp_path):
    store = evaluate.FileStore(tmp_path / "a.progress.npz", ["1", "2"])
    assert store.load() == {}
    store.save({"step": np.asarray(3), "best": np.arange(6.0).reshape(2, 3)})
    store.save({"step": np.asarray(4), "tokens": np.asarray([[1, 2]], np.int32)})  # replaces what was there
    found = evaluate.FileStore(tmp_path / "a.progress.npz", ["1", "2"]).load()
    assert found.keys() == {"step", "tokens"} and found["step"] == 4 and found["tokens"].dtype == np.int32
    np.testing.assert_array_equal(found["tokens"], [[1, 2]])
    for others in (["1"], ["2", "1"], ["1", "2", "3"], []):
        assert evaluate.FileStore(tmp_path / "a.progress.npz", others).load() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a.progress.npz"]
    store.clear()
    store.clear()
    assert store.load() == {} and not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Of an attack of one's own."""

    steps: int = 4


def test_an_attack_of_ones_own_keeps_its_progress_within_a_batch(small_model, answer, folder, monkeypatch, tmp_path):
    """A row of the table is all that it takes. The search counts to `steps` and is killed at the third step of the second batch."""
    taken, kill = [], [("x", 2)]

    def search(behaviors, victim, context):
        found = context.store.load()
        start = int(found.get("step", 0))
        for step in range(start, context.settings.steps):
            taken.append((behaviors[0].id, step))
            if taken[-1] in kill:
                kill.clear()
                raise KeyboardInterrupt
            context.store.save({"step": np.asarray(step + 1)})
        assert context.judge is not None and victim.decoding.batch_size == 2
        return [Attempt(b.id, f"{b.text} a", b.targets[0], tokens=(5, 6, 7)) for b in behaviors]

    row = Attack(name="search", title="Search", surface="text", attempts=search, settings=SearchSettings, adaptive=True, uses_judge=True)
    monkeypatch.setitem(ATTACKS, "search", row)
    config = defaults()
    assert config.attacks.search.steps == 4
    config.data.update({"prompt_length": 16, "response_length": 5})
    config.evaluation.update({"max_new_tokens": 4, "batch_size": 2, "attacks": ("search",)})
    given = {"eval_behaviors": MORE[:4], "utility_sets": {}, "config": config}

    def run():
        read = {"behaviors": [], "chats": [], "rewrites": [], **given}
        monkeypatch.setattr(evaluate, "subjects", lambda inputs, mesh: [Subject("dat", "dat", lambda target: small_model)])
        mesh = sharding.make_mesh(1, 1, 1)
        with jax.set_mesh(mesh):
            evaluate.run(Inputs(folder=tmp_path / "seed_3", seed=3, **read), mesh)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (folder / "search.progress.npz").exists() and list(about(folder / "search.jsonl")["done"]) == ["1", "2"]
    assert taken == [("1", 0), ("1", 1), ("1", 2), ("1", 3), ("x", 0), ("x", 1), ("x", 2)]
    taken.clear()
    run()
    assert taken == [("x", 2), ("x", 3)]
    assert not (folder / "search.progress.npz").exists()
    assert about(folder / "search.jsonl")["made_with"]["judge"] == "refusal_prefix"  # by which it was steered
    found = lines(folder / "search.jsonl")
    assert [line["behavior"] for line in found] == ["1", "2", "x", "y"] and all(line["tokens"] == [5, 6, 7] for line in found)


def test_limits_and_forms(small_model, answer, config, folder):
    config.evaluation.update({"utility_prompts": 1, "attacks": ("direct", "rewrite", "prefill+rewrite", "embedding+rewrite")})
    config.attacks.embedding.forms = ("x",)
    answer(small_model, eval_behaviors=BEHAVIORS[:1])
    names = {path.stem for path in folder.glob("*.jsonl")}
    assert names == {"direct", "rewrite-past", "rewrite-x", "prefill+rewrite-past", "prefill+rewrite-x", "embedding+rewrite-x"}
    assert [(line["prompt"], line["prefill"]) for line in lines(folder / "prefill+rewrite-x.jsonl")] == [("a b", "with")]
    assert len(lines(folder / "direct.jsonl")) == 1 and len(lines(folder / "utility" / "benign.jsonl")) == 1


def test_targets_that_were_made_are_noted_where_they_steer(small_model, answer, config, folder):
    config.evaluation.attacks = ("direct", "prefill", "embedding")
    answer(small_model, eval_behaviors=[BEHAVIORS[0], dataclasses.replace(BEHAVIORS[1], made_target=True)], utility_sets={})
    assert {path.stem: json.loads(path.read_text())["made_targets"] for path in folder.glob("*.json")} == {
        "direct": False, "prefill": True, "embedding": True
    }  # fmt: skip
    assert json.loads((folder / "direct.json").read_text())["targets"] == {b.id: b.targets[0] for b in BEHAVIORS[:2]}


def test_no_behaviors(small_model, answer):
    with pytest.raises(ValueError, match=r"config\.data\.eval_behaviors is empty; allowed: a behaviors CSV"):
        answer(small_model, eval_behaviors=[])


def test_a_file_has_likelihoods_of_one_refusal(small_model, answer, config, folder):
    config.evaluation.update({"attacks": ("direct",), "measures": ("attacks",), "refusal": "i can not help ."})
    answer(small_model, eval_behaviors=BEHAVIORS[:1])
    config.evaluation.update({"measures": ()})
    answer(small_model)  # what is added without the measure forgets nothing
    assert about(folder / "direct.jsonl")["refusal"] == "i can not help ."
    config.evaluation.update({"measures": ("attacks",), "refusal": "no ."})
    with pytest.raises(ValueError, match=r"direct\.json was made with refusal = 'i can not help \.', now it is 'no \.'; delete that file"):
        answer(small_model)
