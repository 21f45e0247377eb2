"""Prompts sampled for benign answers: drawn in batches, kept where the target is consistent, added to every method's utility rows."""

import json
import types

import jax
import pytest

from dat_jax import sharding, stations
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Victim
from dat_jax.data import conversations, pipeline
from dat_jax.stations import inputs as inputs_lib
from dat_jax.stations import sample, sample_utility, train
from dat_jax.stations.subjects import load_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_job):
    folder = tmp_path_factory.mktemp("brought")
    tiny_job.bring(folder)
    return folder


@pytest.fixture
def brought(folder, tiny_job):
    config = tiny_job.get_config(folder)
    config.training.methods = ("cat",)
    config.utility.update({"samples": 3, "keep": "all"})
    return config


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(config, folder):
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        inputs = inputs_lib.read_inputs(config, folder / "seed_0", 0)
        sample.run(inputs, mesh)
    return inputs


def test_every_method_trains_on_them(brought, tmp_path, monkeypatch):
    chats = []
    monkeypatch.setattr(
        pipeline,
        "utility_rows",
        lambda tokenizer, rows, data, make=pipeline.utility_rows: chats.append(rows) or make(tokenizer, rows, data),
    )
    assert stations.run("sample", brought, str(tmp_path)) == 0
    assert not (tmp_path / "seed_0" / "prompts").exists()  # CAT needs no adversarial samples
    folder = tmp_path / "seed_0" / "utility_prompts"
    records, counts = read(folder / "prompts.jsonl"), json.loads((folder / "counts.json").read_text())
    kept = [(r["prompt"], r["response"]) for r in records if r["selected"]]
    assert len(records) == 8 * 3 == counts["drawn"] and counts["answers"] == 8
    assert len(kept) == len(set(kept)) == counts["kept"] > 0
    assert {r["response"] for r in records} == {f"It is {i}." for i in range(8)}
    assert stations.run("train", brought, str(tmp_path)) == 0
    assert [(chat[0]["content"], chat[1]["content"]) for chat in chats[0][8:]] == kept and len(chats[0]) == 8 + len(kept)
    finished = json.loads((tmp_path / "seed_0" / "cat" / "finished.json").read_text())
    assert finished["flops"] > 0
    assert stations.run("evaluate", brought, str(tmp_path)) == stations.run("judge", brought, str(tmp_path)) == 0
    assert stations.run("report", brought, str(tmp_path)) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    cost = json.loads((folder / "cost.json").read_text())
    (row,) = results["flops"]
    assert row["utility_sampling"] == cost["flops"] + cost["asking_flops"] > 0 == row["sampling"]
    assert row["total"] == row["training"] + row["utility_sampling"]


def test_drawn_in_batches_of_answers_and_never_twice(brought, tmp_path, monkeypatch):
    brought.sampler.batch_size = 6
    inputs = draw(brought, tmp_path)
    folder = tmp_path / "seed_0" / "utility_prompts"
    assert len(list((folder / "samples").glob("*.jsonl"))) == 4  # 8 answers, 3 prompts each, 6 rows per batch
    before = (folder / "prompts.jsonl").read_bytes()
    for name in ("prompts.jsonl", "cost.json"):
        (folder / name).unlink()
    monkeypatch.setattr(sample_utility.pool, "draw", lambda *_: pytest.fail("drawn again"))
    draw(brought, tmp_path)
    assert (folder / "prompts.jsonl").read_bytes() == before
    assert len(train.sampled_chats(inputs)) == json.loads((folder / "counts.json").read_text())["kept"]


def test_an_interrupted_asking_goes_on(brought, tmp_path, monkeypatch):
    """Batches of one prompt, saved after every 16: killed after the first save, the second call asks for the rest alone."""
    brought.utility.update({"keep": "judge", "response": "own"})
    brought.evaluation.batch_size = 1
    asked, answer = [], Victim.answer

    def counted(self, attempts, progress=lambda done: None):
        if len(asked) == 16 and interrupt:
            raise KeyboardInterrupt
        asked.extend(a.prompt for a in attempts)
        return answer(self, attempts, progress)

    monkeypatch.setattr(Victim, "answer", counted)
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        draw(brought, tmp_path / "cut")
    interrupt, brought.evaluation.max_new_tokens = False, brought.evaluation.max_new_tokens + 1
    with pytest.raises(ValueError, match=r"own_answers\.json was made with decoding\.max_new_tokens = 4, now it is 5; put it back"):
        draw(brought, tmp_path / "cut")
    brought.evaluation.max_new_tokens -= 1
    draw(brought, tmp_path / "cut")
    whole = list(asked)
    asked.clear()
    draw(brought, tmp_path / "whole")
    assert whole == asked
    paths = [tmp_path / name / "seed_0" / "utility_prompts" / "prompts.jsonl" for name in ("cut", "whole")]
    assert paths[0].read_text() == paths[1].read_text()
    own = {row["answer"] for row in read(paths[0].parent / "own_answers.jsonl")}
    assert all(r["response"] in own for r in read(paths[0]) if r["selected"])


def test_inconsistent_prompts_are_left_out(brought, tmp_path):
    brought.utility.update({"keep": "likelihood", "threshold": -1e9})
    draw(brought, tmp_path / "loose")
    records = read(tmp_path / "loose" / "seed_0" / "utility_prompts" / "prompts.jsonl")
    scores = sorted({r["compliance"] for r in records if r["selected"]})
    assert all(score < 0 for score in scores)  # nats per token
    brought.utility.threshold = scores[len(scores) // 2]
    draw(brought, tmp_path / "tight")
    kept = [r for r in read(tmp_path / "tight" / "seed_0" / "utility_prompts" / "prompts.jsonl") if r["selected"]]
    assert {r["compliance"] for r in kept} == {score for score in scores if score >= brought.utility.threshold}
    brought.utility.update({"keep": "agree", "threshold": -1.0})  # a random model never says the chat's answer
    with pytest.raises(ValueError, match=r"config\.utility\.keep is 'agree', and none of 24 prompts for 8 benign answers is consistent"):
        draw(brought, tmp_path / "none")


def test_training_without_them_says_what_to_do(brought, tmp_path):
    with pytest.raises(ValueError, match=r"utility_prompts/prompts\.jsonl: no utility prompts were sampled yet; run --mode=sample first"):
        stations.run("train", brought, str(tmp_path))


def test_a_prompt_fits_where_it_fits_with_the_system_prompt(small_model, tmp_path):
    """What is kept here is what the training keeps, which lays the rows out with it."""
    data = types.SimpleNamespace(system="paint the wood", prompt_length=0)
    prompts = ["wash", "paint the wood with a brush"]
    data.prompt_length = conversations.prompt_tokens(small_model.tokenizer, [{"role": "user", "content": prompts[0]}], data.system)
    rows = [("1", prompt, "y", "no") for prompt in prompts]
    kept = pipeline.within_block(small_model.tokenizer, rows, data)
    assert [rows[index] for index in sample_utility.within(small_model, prompts, types.SimpleNamespace(data=data))] == kept == rows[:1]
    data.system = None
    assert len(sample_utility.within(small_model, prompts, types.SimpleNamespace(data=data))) > 1


def test_adversarial_prompts_are_compared_with_the_request(brought, tmp_path):
    """By how much the rest of the response is likelier than after the request, once its first words are given."""
    brought.training.methods = ("dat",)
    brought.sampler.update({"consistency": 1000.0, "given": 2})
    brought.utility.samples = 0
    inputs = draw(brought, tmp_path)
    mesh = sharding.make_mesh(1, 1, 1)
    records = read(tmp_path / "seed_0" / "prompts" / "prompts.jsonl")
    with jax.set_mesh(mesh):
        target = load_target(inputs.config, mesh)
        scores, victim = sample.consistency_of(inputs, target, mesh), Victim(target, inputs.decoding, 0, mesh)
        behavior = inputs.behaviors[0]
        response = behavior.targets[0]
        assert scores([behavior] * 2, [behavior.text, ""], [response] * 2) == [0.0, pytest.approx(sample.UNREAD, abs=100)]
        *start, last = response.split()
        given, rest = " ".join(start[:2]), " ".join([*start[2:], last])  # one word at least is left
        record = next(r for r in records if r["behavior_id"] == behavior.id and r["response"] == response and r["consistency"] > -900)
        after, expected = victim.log_likelihood([Attempt("", x, rest, prefill=given) for x in (record["prompt"], behavior.text)])
    assert record["consistency"] == pytest.approx(after - expected, abs=1e-4)
    assert len({r["consistency"] for r in records}) > 3
