"""Likelihoods beside the answers: files and their schema, what is new is measured and nothing else, and what they were made with."""

import json

import jax
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.attacks import scoring
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.config import defaults
from dat_jax.data import conversations, manifest
from dat_jax.data.behaviors import Behavior
from dat_jax.data.tasks import Question
from dat_jax.models.huggingface import Model
from dat_jax.stations import evaluate, inputs
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import Subject

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush", "a b c"), ("no",)), Behavior("2", "wash", ("x",), ("no",), made_target=True)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "the wood door"}] for text in ("a b", "how did people", "q")]
TASKS = {"arc": [Question("q1", "a b", ("c", "d e f"), 1), Question("q2", "c", ("paint", "wash"), 0)]}


@pytest.fixture
def evaluation(small_model, tmp_path, monkeypatch):
    """evaluation(model, chats=..., tasks=...) measures and answers nothing; the target is the small model."""
    config = defaults()
    config.data.update({"prompt_length": 16, "response_length": 3})
    config.evaluation.update({"attacks": (), "batch_size": 2, "max_new_tokens": 2})
    monkeypatch.setattr(evaluate, "load_target", lambda config, mesh: small_model)

    def run(model, chats=(), tasks={}, **changes):  # noqa: B006
        config.evaluation.update(changes)
        monkeypatch.setattr(evaluate, "subjects", lambda inputs, mesh: [Subject("dat", "dat", lambda target: model)])
        mesh = sharding.make_mesh(1, 1, 1)
        found = Inputs(
            config, tmp_path, 3, [], BEHAVIORS, [], [], {}, list(chats), dict(tasks), {"arc": [Question("e", "x", ("y", "z"), 0)]}
        )
        with jax.set_mesh(mesh):
            evaluate.run(found, mesh)
        return {path.stem: [json.loads(line) for line in path.open()] for path in (tmp_path / "measures" / "dat").glob("*.jsonl")}

    return run


@pytest.fixture
def other(small_model):
    return Model(jax.tree.map(lambda leaf: leaf + 0.02, small_model.params), small_model.config, small_model.tokenizer)


def test_files_and_what_is_added(evaluation, other, tmp_path, monkeypatch):
    found = evaluation(other, CHATS[:2], TASKS)
    assert sorted(found) == ["chats", "harmful", "task-arc"]
    assert [(line["behavior"], line["tokens"]) for line in found["harmful"]] == [("1", 3), ("1", 3)]  # cut at 3; a made target is not asked
    begin = {"method": "dat", "seed": 3, "measure": "chats"}
    assert all(line.items() >= begin.items() and line["kl"] > 0 and line["nll"] > 0 and line["tokens"] == 3 for line in found["chats"])
    victim = Victim(other, Decoding(16, 3, 2, 2, 0.0, "user", None), 0)
    encoded = [
        (conversations.encode_prompt(other.tokenizer, c[:-1], "all")[0], conversations.encode_response(other.tokenizer, c)) for c in CHATS
    ]
    wanted = [nll for nll, _ in scoring.response_sums(victim, None, *zip(*encoded))]
    assert [line["nll"] for line in found["chats"]] == pytest.approx(wanted[:2], rel=1e-5)
    for line, question in zip(found["task-arc"], TASKS["arc"]):
        assert len(line["log_likelihoods"]) == 2 and line["answer"] == question.answer
        assert line["acc"] == (np.argmax(line["log_likelihoods"]) == question.answer)
    about = manifest.read(tmp_path / "measures/dat/chats.json")
    assert about["made_with"] == {"measure": "chats", "original": about["made_with"]["original"], "system": None, "response_length": 3,
                                  "model": "dat"} and about["cost"]["flops"] > 0  # fmt: skip

    measured = []
    monkeypatch.setattr(evaluate.measure.scoring, "response_sums", lambda victim, original, prompts, responses: measured.append(prompts) or
                        [(1.0, 2.0)] * len(prompts))  # fmt: skip
    assert evaluation(other, CHATS[:2], TASKS) == found and measured == []
    more = evaluation(other, CHATS, TASKS)
    assert more["chats"][:2] == found["chats"] and len(more["chats"]) == 3 and [len(prompts) for prompts in measured] == [1]
    with pytest.raises(ValueError, match=r"task-arc\.json was made with few_shot = 0, now it is 1"):
        evaluation(other, CHATS, TASKS, few_shot=1)


def test_a_model_does_not_differ_from_itself(evaluation, small_model):
    found = evaluation(small_model, CHATS, measures=("chats",))
    assert sorted(found) == ["chats"] and all(abs(line["kl"]) < 1e-4 for line in found["chats"])


def test_the_config_names_files_that_are_checked(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Q", "choices": ["a", "b"], "answer": 0}\n')
    config = defaults()
    config.data.tasks = (f"mine={tmp_path}/q.jsonl",)
    assert [q.text for q in inputs._measured(config)["tasks"]["mine"]] == ["Q"]
    config.evaluation.few_shot = 2
    with pytest.raises(ValueError, match=r"0 examples have the subject '' of question '0'; allowed: 2 or more"):
        inputs._measured(config)
    config.data.task_examples = (f"other={tmp_path}/q.jsonl",)
    with pytest.raises(ValueError, match=r"config\.data\.task_examples names the task 'other'; allowed: .*: mine"):
        inputs._measured(config)
    config.data.tasks, config.target.model, config.training.methods = (f"gone={tmp_path}/g.jsonl",), "m", ()
    with pytest.raises(ValueError, match=r"g\.jsonl  \(config\.data\.tasks; did you mean q\.jsonl\?\): multiple-choice questions"):
        inputs.check_files(config)
