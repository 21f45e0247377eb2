"""Attempts that are ready before their attack starts: templates, infilled prompts and the replay of what broke another model."""

import dataclasses
import json
import types

import jax
import pytest

from dat_jax import sharding, stations
from dat_jax.attacks import ATTACKS
from dat_jax.attacks import given as attack
from dat_jax.attacks.attack import Context
from dat_jax.data import answers as answers_lib
from dat_jax.data.infilled import read_infilled
from dat_jax.diffusion import pool
from dat_jax.diffusion.pool import Pool
from dat_jax.stations import evaluate, given
from dat_jax.stations.inputs import read_inputs
from dat_jax.stations.rewriter import Rewriter
from dat_jax.stations.subjects import Subject


@pytest.fixture
def inputs(config, tmp_path):
    return read_inputs(config, tmp_path / "seed_0", 0)


@pytest.fixture
def mesh():
    with jax.set_mesh(sharding.make_mesh(1, 1, 1)) as mesh:
        yield mesh


def templates(inputs, tmp_path, count=0):
    path = tmp_path / "templates.jsonl"
    path.write_text("".join(json.dumps({"name": str(i), "template": f"{i} {{prompt}}"}) + "\n" for i in range(6)))
    inputs.config.attacks.templates.update({"file": str(path), "count": count})
    return given.of_templates(inputs)


def test_every_template_with_every_request(inputs, tmp_path):
    found = templates(inputs, tmp_path)
    assert [a.prompt for a in found[:6]] == [f"{i} {inputs.eval_behaviors[0].text}" for i in range(6)] and len(found) == 18
    batch = ATTACKS["templates"].attempts(inputs.eval_behaviors[1:2], None, Context(0, given=found))
    assert {a.behavior for a in batch} == {inputs.eval_behaviors[1].id} and len(batch) == 6


def test_a_draw_of_templates_belongs_to_seed_and_behavior(inputs, tmp_path):
    found = templates(inputs, tmp_path, count=2)
    assert len(found) == 6 and found == templates(inputs, tmp_path, count=2)
    assert len({tuple(a.prompt[0] for a in found if a.behavior == b.id) for b in inputs.eval_behaviors}) > 1
    other = given.of_templates(dataclasses.replace(inputs, seed=1))
    assert [a.prompt for a in other] != [a.prompt for a in found]


def test_the_sampler_writes_prompts_once_and_in_the_public_format(inputs, mesh, monkeypatch):
    inputs.config.attacks.infilling.update({"samples": 3, "preset": "sampler"})
    found = given.of_infilling(inputs, mesh)
    assert len(found) <= 9 and {a.behavior for a in found} <= {b.id for b in inputs.eval_behaviors}
    again = read_infilled(str(inputs.folder / "infilling" / "prompts.csv"), inputs.eval_behaviors)
    assert sum(map(len, again.values())) == len(found)
    assert json.loads((inputs.folder / "infilling" / "cost.json").read_text())["flops"] > 0
    monkeypatch.setattr(given, "load_model", lambda *_: pytest.fail("the sampler was loaded again"))
    assert given.of_infilling(inputs, mesh) == found
    inputs.config.attacks.infilling.file = str(inputs.folder / "infilling" / "prompts.csv")
    assert given.of_infilling(inputs, mesh) == found
    inputs.config.attacks.infilling.update({"file": "", "samples": 4})
    with pytest.raises(ValueError, match=r"made_with\.json was made with samples = 3, now it is 4; delete that folder to draw again"):
        given.of_infilling(inputs, mesh)


def test_presets_are_the_published_ones():
    own = Pool(
        samples=64, prompt_tokens=(8, 32), steps=32, acceptance="entropy", cache_refresh=2, separator="||", response_tokens=8, begin=True
    )
    for name, length in (("64/64", 64), ("32/32", 32)):
        made = given.preset(attack.Infilling(samples=7, preset=name), own)
        made.validate()
        assert (made.samples, made.prompt_tokens, made.steps) == (7, (length, length), length)
        assert (made.remasking, made.temperature, made.condition_remasking) == ("low_confidence", 0.0, 1.0)
        assert (made.separator, made.begin) == ("", False)
    assert "mend" not in pool.recorded(made) and pool.recorded(dataclasses.replace(made, mend=1))["mend"] == 1  # as before it was a setting
    kept = given.preset(attack.Infilling(samples=7, preset="sampler"), own)
    assert kept == dataclasses.replace(own, samples=7, keep=7, likelihood_samples=0, selection="random", consistency=0.0)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_row_of_a_preset_is_masks_and_the_answer_as_the_published_code_encodes_it(inputs, monkeypatch, shifted):
    inputs.config.sampler.update({"separator": "||", "begin": True, "response_tokens": 5})
    sampler, seen = given.load_model(inputs.config.sampler, None), []
    sampler = dataclasses.replace(sampler, config=dataclasses.replace(sampler.config, logit_shift=shifted))
    monkeypatch.setattr(given, "load_model", lambda *_: sampler)

    def noting(how, model, rows, *_):
        seen.append(rows)
        return rows.tokens_BxT, None, {"flops": 0.0}

    monkeypatch.setattr(pool, "sample_rows", noting)
    given.drawn(inputs, attack.Infilling(samples=2, preset="32/32"), None)
    rows = [(tokens[valid], mask[valid]) for r in seen for tokens, mask, valid in zip(r.tokens_BxT, r.prompt_mask_BxT, r.valid_BxT)]
    begin = [sampler.tokenizer.bos_token_id] * shifted  # what such a sampler was trained on: there is no published row for it
    for (tokens, mask), behavior in zip(rows, [b for b in inputs.eval_behaviors for _ in range(2)]):
        encoded = sampler.tokenizer(f"\nAnswer: {behavior.targets[0]}", add_special_tokens=True)["input_ids"]
        assert mask.tolist() == [False] * shifted + [True] * 32 + [False] * len(encoded)
        assert tokens[~mask].tolist() == begin + encoded  # nothing cut, no end of text


def write(inputs, subject, name, prompts, labels, surface="text", **more):
    lines = [{"attack": name, "behavior": id, "prompt": prompt, "prefill": "", "response": "r"} | more for id, prompt in prompts]
    done = {id: "" for id, _ in prompts}
    about = {"attack": name, "surface": surface, "made_with": {}, "done": done, "asked": list(done)}
    answers_lib.write(answers_lib.Answers(inputs.folder / "answers" / subject / name, about, lines))
    folder = inputs.folder / "verdicts" / inputs.headline / subject
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"answer": answers_lib.answer_checksum(line), "label": label, "score": 1.0} for line, label in zip(lines, labels)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_broke_one_model_is_sent_to_the_other(inputs):
    first, second, third = (b.id for b in inputs.eval_behaviors)
    models = [Subject(name, name, lambda target: target()) for name in ("cat", "dat")]
    write(inputs, "cat", "gcg", [(first, "a !!"), (second, "b !!")], ["comply", "refuse"])
    write(inputs, "cat", "prefill", [(third, "c")], ["comply"], surface="prefill", prefill="Sure")
    write(inputs, "cat", "embedding", [(second, "b")], ["comply"], surface="embedding")  # nobody can type it
    write(inputs, "dat", "direct", [(first, "a")], ["refuse"])
    found = given.of_replay(inputs, models[1], models[:1])
    assert [(a.behavior, a.prompt, a.prefill) for a in found] == [(first, "a !!", ""), (third, "c", "Sure")]
    write(inputs, "dat", "gcg", [(first, "a !!")], ["refuse"])
    assert [a.behavior for a in given.of_replay(inputs, models[1], models[:1])] == [third]  # what it was sent already is not sent again
    assert given.of_replay(inputs, models[0], models[1:]) == []
    inputs.config.attacks.replay.most = 1
    write(inputs, "cat", "gcg", [(third, "x"), (third, "y")], ["comply", "comply"])
    assert len(given.of_replay(inputs, models[1], models[:1])) == 1


def test_replay_needs_verdicts(inputs):
    models = [Subject(name, name, lambda target: target()) for name in ("cat", "dat")]
    with pytest.raises(ValueError, match=r"verdicts/refusal_prefix/cat: no verdicts yet.*run --mode=evaluate,judge without it first"):
        given.of_replay(inputs, models[1], models[:1])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("templates", {}, r"config\.attacks\.templates\.file is ''"),
        ("templates", {"file": "/nowhere.jsonl"}, "/nowhere.jsonl: no such file"),
        ("infilling", {"file": "/nowhere.csv"}, "/nowhere.csv: no such file"),
        ("infilling", {}, r"config\.attacks\.infilling needs config\.sampler\.model"),
        (
            "test_cases",
            {},
            r"config\.attacks\.test_cases\.file is ''; allowed: a test_cases\.json, completions or results file of HarmBench",
        ),
        ("test_cases", {"file": "/nowhere.json"}, "/nowhere.json: no such file"),
    ],
)
def test_what_is_missing_is_known_before_a_model_is_loaded(inputs, name, settings, message):
    inputs.config.evaluation.attacks = (name,)
    inputs.config.attacks[name].update(settings)
    inputs.config.sampler.model = ""
    with pytest.raises(ValueError, match=message):
        given.check(inputs)


def test_what_others_sent_is_sent_once(inputs, tmp_path):
    first, second, _ = (b.id for b in inputs.eval_behaviors)
    path = tmp_path / "test_cases.json"
    path.write_text(json.dumps({second: ["a", "b"], "other": ["c"], first: ["d", "d"]}))
    inputs.config.attacks.test_cases.file = str(path)
    found = given.of_test_cases(inputs)
    assert [(a.behavior, a.prompt) for a in found] == [(second, "a"), (second, "b"), (first, "d")]
    inputs.config.evaluation.attacks = ("test_cases",)
    given.check(inputs)
    assert given.ready(inputs, None) == {"test_cases": found}
    batch = ATTACKS["test_cases"].attempts(inputs.eval_behaviors[:1], None, Context(0, given=found))
    assert [a.prompt for a in batch] == ["d"] and batch[0].target == inputs.eval_behaviors[0].targets[0]


def test_a_beginning_of_an_answer_among_others_texts_needs_more_access(inputs, tmp_path):
    behavior = inputs.eval_behaviors[0]
    user, prefilled = {"role": "user", "content": behavior.text}, {"role": "assistant", "content": "Sure, take"}
    steps = [{"step": n, "model_completions": [], "model_input": sent} for n, sent in enumerate(([user], [user, prefilled]))]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": {}, "runs": [{"original_prompt": [user], "steps": steps}]}))
    inputs.config.attacks.test_cases.file = str(path)
    inputs.config.evaluation.attacks = ("test_cases",)
    (job, *_) = evaluate.plan(inputs, "dat", given.ready(inputs, None), Rewriter(inputs, None))
    attempts = job.attempts([behavior], types.SimpleNamespace(mesh=None, spent={}), None)
    assert [(a.prompt, a.prefill) for a in attempts] == [(behavior.text, ""), (behavior.text, "Sure, take")]
    assert [job.line(attempt, "")["surface"] for attempt in attempts] == ["text", "prefill"]


def test_models_are_attacked_without_replay_and_judged_before_it(inputs):
    inputs.config.evaluation.attacks = ("direct", "replay")
    found = stations.turns(("train", "evaluate", "judge", "report"), inputs)
    assert [(name, tuple(read.config.evaluation.attacks)) for name, read in found] == [
        ("train", ("direct", "replay")), ("evaluate", ("direct",)), ("judge", ("direct",)), ("evaluate", ("direct", "replay")),
        ("judge", ("direct", "replay")),
    ]  # fmt: skip
    assert [name for name, _ in stations.turns(("evaluate",), inputs)] == ["evaluate"]
    inputs.config.evaluation.attacks = ("direct",)
    assert [name for name, _ in stations.turns(("evaluate", "judge"), inputs)] == ["evaluate", "judge"]
