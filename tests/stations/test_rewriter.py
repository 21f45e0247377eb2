"""The rewriter as an endpoint, a local model and a file: what is asked once, what fails, and what an attack that stops leaves behind."""

import dataclasses
import json
import logging
import threading

import jax
import pytest

from dat_jax import models, sharding
from dat_jax.attacks.attack import Ask, Context, Stopped
from dat_jax.config import defaults, validate
from dat_jax.data import manifest
from dat_jax.data.behaviors import Behavior
from dat_jax.stations import evaluate, rewriter
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.rewriter import Rewriter
from dat_jax.stations.subjects import Subject

KEY = "sk-a-secret-of-the-test"
BEHAVIORS = [Behavior(id, text, ("with a brush",), ("no",)) for id, text in (("1", "paint the wood"), ("2", "wash the door"), ("3", "a b"))]
ASKS = [Ask(b.id, "gd", (("system", "be brief"), ("user", f"how {b.text}")), unlike=b.text) for b in BEHAVIORS]


def reply(text, **more):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]} | more), {}


def echo(body):
    """The last word of what was asked."""
    return reply(f"[{body['messages'][-1]['content'].split()[-1]}]", usage={"total_tokens": 7})


@pytest.fixture
def config(server, monkeypatch):
    monkeypatch.setenv("REWRITER_KEY", KEY)
    server.script[:] = [echo]
    config = defaults()
    config.target.model, config.data.eval_behaviors, config.training.methods = "x/y", "z.csv", ()
    config.data.update({"prompt_length": 16, "response_length": 5})
    config.evaluation.update({"max_new_tokens": 3, "batch_size": 2, "attacks": ("direct", "translation")})
    config.attacks.translation.languages = ("gd", "zu")
    config.rewriter.max_new_tokens = 3
    config.rewriter.endpoint.update({"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "key_variable": "REWRITER_KEY"})
    config.rewriter.endpoint.update({"wait": 0.01, "retries": 1, "parallel": 1})
    return config


def inputs(config, tmp_path, **changes):
    read = {"behaviors": [], "eval_behaviors": BEHAVIORS, "chats": [], "rewrites": [], "utility_sets": {}}
    return Inputs(config=config, folder=tmp_path / "seed_3", seed=3, **(read | changes))


def context():
    return Context(3)


def test_an_endpoint_is_asked_once_for_each_thing(server, config, tmp_path):
    validate(config)
    spent, write = context(), Rewriter(inputs(config, tmp_path), None)
    assert write([*ASKS, ASKS[0]], spent) == ["[wood]", "[door]", "[b]", "[wood]"] and len(server.seen) == 3
    path, body, headers = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how paint the wood"}]
    assert body == {"model": "m", "messages": messages, "temperature": 1.0, "max_tokens": 3}
    assert spent.spent == {"rewriter_calls": 4, "rewriter_tokens": 28, "rewriter_flops": 0.0, "rewriter_refusals": 0}
    again = Rewriter(inputs(config, tmp_path), None)  # a call that goes on, or the next model under attack
    other = context()
    assert again(ASKS, other) == ["[wood]", "[door]", "[b]"] and len(server.seen) == 3
    assert other.spent["rewriter_calls"] == 3  # the cost of an attack does not depend on what was known before
    again([dataclasses.replace(ASKS[0], draw=1)], other)
    config.rewriter.temperature = 0.5
    Rewriter(inputs(config, tmp_path), None)(ASKS[:1], other)
    assert len(server.seen) == 5
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "seed_3" / "rewriter").iterdir())


def test_what_a_reply_is_not_counted_with_is_counted(server, config, tmp_path):
    server.script[:] = [reply("I'm sorry, but no.")]
    Rewriter(inputs(config, tmp_path), None)(ASKS[:1], spent := context())
    assert spent.spent == {
        "rewriter_calls": 1, "rewriter_tokens": 0, "rewriter_flops": 0.0, "rewriter_refusals": 1, "rewriter_calls_without_tokens": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ((429, KEY, {}), r"gave no reply in 2 tries; last status: HTTP 429"),
        ((500, "", {}), r"gave no reply in 2 tries; last status: HTTP 500"),
        ((200, "<html>sign in</html>", {}), r"last status: HTTP 200 with HTML that is no chat completion"),
        ((401, KEY, {}), r"gave no reply in 1 try; last status: HTTP 401"),
        (reply("  "), r"it gave no text for behavior '3'"),
        (reply(None), r"it gave no text for behavior '3'"),
        (reply('"A b."'), r"it gave the request of behavior '3' back as it was"),
    ],
)
def test_a_rewriter_that_fails_stops_its_attack_and_loses_nothing(server, config, tmp_path, script, message):
    server.script[:] = [echo, echo, script]
    with pytest.raises(Stopped, match=message) as error:
        Rewriter(inputs(config, tmp_path), None)(ASKS, context())
    assert str(error.value).startswith(f"the rewriter, http://127.0.0.1:{server.server_port}/v1: ") and KEY not in str(error.value)
    server.script[:], server.seen[:] = [echo], []
    assert Rewriter(inputs(config, tmp_path), None)(ASKS, context())[2] == "[b]" and len(server.seen) == 1


def test_a_slow_endpoint_that_recovers(server, config, tmp_path):
    def slow(body):
        server.wake.wait(5)
        return echo(body)

    server.wake = threading.Event()
    server.script[:], config.rewriter.endpoint.timeout = [slow, echo], 0.3
    assert Rewriter(inputs(config, tmp_path), None)(ASKS[:1], context()) == ["[wood]"]
    server.wake.set()


def test_replies_that_were_edited_are_refused(config, tmp_path):
    Rewriter(inputs(config, tmp_path), None)(ASKS[:1], context())
    path = tmp_path / "seed_3" / "rewriter" / "replies.jsonl"
    path.write_text(path.read_text().replace("[wood]", "[iron]"))
    with pytest.raises(ValueError, match=r"replies\.jsonl.*delete the folder to ask the rewriter again"):
        Rewriter(inputs(config, tmp_path), None)(ASKS[:1], context())


def write_file(tmp_path, rows):
    path = tmp_path / "ready.jsonl"
    path.write_text("".join(json.dumps({"id": id, "rewrite": form, "prompt": prompt}) + "\n" for id, form, prompt in rows))
    return str(path)


READY = [(b.id, form, f"{form} {b.id}") for b in BEHAVIORS for form in ("gd", "zu")]


def test_a_file_of_ready_rewrites(server, config, tmp_path):
    config.rewriter.endpoint.url, config.rewriter.file = "", write_file(tmp_path, READY)
    rewriter.check(inputs(config, tmp_path))
    spent = context()
    assert Rewriter(inputs(config, tmp_path), None)(ASKS, spent) == ["gd 1", "gd 2", "gd 3"]
    assert spent.spent == {} and not (tmp_path / "seed_3" / "rewriter").exists()
    with pytest.raises(Stopped, match=r"no rewrite 2 of the form 'gd' of behavior '1'"):
        Rewriter(inputs(config, tmp_path), None)([dataclasses.replace(ASKS[0], draw=1)], spent)


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, READY[:-1], r"has 0 rewrites 'zu' of behavior '3'; allowed: as many as config\.attacks\.translation\.tries"),
        ({}, [("other", "gd", "x")], r"has 0 rewrites 'gd' of behavior '1'"),
        ({}, [*READY[:-1], ("3", "zu", "A b!")], r"form 'zu': it gave the request of behavior '3' back as it was; allowed: other words"),
        ({"file": "nowhere.jsonl"}, None, r"nowhere\.jsonl: no such file"),
        ({"model": "x/y"}, READY, r"config\.rewriter has both model and file; allowed: one of config\.rewriter\.model"),
        ({"file": ""}, None, r"names 'translation', which needs a rewriter; allowed: one of config\.rewriter\.model"),
        ({"file": "", "url": "http://127.0.0.1:9", "name": ""}, None, r"config\.rewriter\.endpoint\.model is ''"),
        ({"file": "", "url": "http://127.0.0.1:9", "key": "NOT_SET"}, None, r"endpoint\.key_variable: the environment has no NOT_SET"),
        ({"attacks": ("pair",)}, READY, r"names 'pair', which converses with the rewriter; allowed: config\.rewriter\.model or"),
    ],
)
def test_what_cannot_work_is_known_before_a_model_is_loaded(config, tmp_path, changes, rows, message):
    config.rewriter.file = write_file(tmp_path, rows) if rows else ""
    config.rewriter.endpoint.url = ""
    for name, value in changes.items():
        group, key = {"url": ("endpoint", "url"), "name": ("endpoint", "model"), "key": ("endpoint", "key_variable")}.get(name, ("", name))
        if name == "attacks":
            config.evaluation.attacks = value
        else:
            (config.rewriter.endpoint if group else config.rewriter)[key] = value
    with pytest.raises(ValueError, match=message):
        rewriter.check(inputs(config, tmp_path))


def test_an_address_with_a_key_in_it_is_not_repeated(config):
    config.rewriter.endpoint.url = f"http://user:{KEY}@host/v1"
    with pytest.raises(ValueError, match=r"config\.rewriter\.endpoint\.url has a user") as error:
        validate(config)
    assert KEY not in str(error.value)


def test_a_local_model_is_loaded_when_it_is_needed_and_given_up(small_model, config, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(models, "load", lambda *_, **__: loads.append(1) or small_model)
    monkeypatch.setattr(rewriter.huggingface, "identity", lambda source: f"{source} 1234")
    config.rewriter.endpoint.url, config.rewriter.model, config.rewriter.prompt_length = "", "folder", 16
    asks = [Ask(str(n), "gd", (("system", "paint"), ("user", "a"), ("assistant", "b"), ("user", "c d")), draw=n) for n in range(2)]
    write = Rewriter(inputs(config, tmp_path), None)
    assert loads == []
    first = write(asks, spent := context())
    assert loads == [1] and first[0] != first[1]  # another draw of the same words
    assert spent.spent["rewriter_flops"] > 0 and spent.spent["rewriter_tokens"] >= 2 * 14
    write.release()
    assert write(asks[::-1], spent) == first[::-1] and loads == [1]  # known by content
    (tmp_path / "seed_3" / "rewriter" / "replies.json").unlink()
    assert Rewriter(inputs(config, tmp_path), None)(asks[1:], spent) == first[1:]  # whatever is asked beside it
    long = Ask("1", "gd", (("user", "a " * 129),))
    with pytest.raises(Stopped, match=r"has 13\d tokens; allowed: 128, 8 times config\.rewriter\.prompt_length = 16; raise that key"):
        write([long], spent)


def run(small_model, config, tmp_path, monkeypatch, names=("dat", "cat")):
    """Evaluates models; returns the folder of the first one's answers."""
    loaded = []
    found = [Subject(name, name, lambda target, name=name: loaded.append(name) or small_model) for name in names]
    monkeypatch.setattr(evaluate, "subjects", lambda inputs, mesh: found)
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        evaluate.run(inputs(config, tmp_path), mesh)
    return tmp_path / "seed_3" / "answers" / names[0], loaded


def test_an_attack_that_stops_holds_up_no_other_one(small_model, server, config, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    config.attacks.translation.languages = ("gd",)

    def failing(body):
        return (400, "", {}) if body["messages"][0]["content"].endswith("a b") else echo(body)

    server.script[:] = [failing]
    with pytest.raises(ValueError, match=r"^the attack 'translation' was stopped: the rewriter, http.*: HTTP 400\. What it replied before"):
        run(small_model, config, tmp_path, monkeypatch)
    folder = tmp_path / "seed_3" / "answers" / "dat"
    assert [path.name for path in sorted(folder.glob("*.jsonl"))] == ["direct.jsonl"]
    assert (folder.parent / "cat" / "direct.jsonl").exists() and len(server.seen) == 3  # for the second model it was not tried again
    server.script[:], before = [echo], (folder / "direct.jsonl").stat().st_mtime_ns
    folder, loaded = run(small_model, config, tmp_path, monkeypatch)
    assert len(server.seen) == 4 and (folder / "direct.jsonl").stat().st_mtime_ns == before and loaded == ["dat", "cat"]
    lines = [json.loads(line) for line in (folder / "translation-gd.jsonl").read_text().splitlines()]
    assert [(line["behavior"], line["prompt"], line["attack"]) for line in lines] == [
        ("1", "[wood]", "translation:gd"), ("2", "[door]", "translation:gd"), ("3", "[b]", "translation:gd")
    ]  # fmt: skip
    found = manifest.read(folder / "translation-gd.json")
    assert found["made_with"]["rewriter"] == {"url": config.rewriter.endpoint.url, "name": "m", "temperature": 1.0, "max_new_tokens": 3}
    cost = found["cost"]
    assert (cost["answers"], cost["rewriter_calls"], cost["rewriter_tokens"]) == (3, 3, 21)
    assert "rewriter_calls" not in manifest.read(folder / "direct.json")["cost"]
    config.rewriter.temperature = 0.0
    with pytest.raises(ValueError, match=r"translation-gd\.json was made with rewriter\.temperature = 1\.0, now it is 0\.0"):
        run(small_model, config, tmp_path, monkeypatch)


def test_pair_in_a_run_counts_what_it_cost(small_model, server, config, tmp_path, monkeypatch):
    config.evaluation.attacks = ("pair",)
    config.attacks.pair.update({"streams": 1, "iterations": 2, "json_tries": 2})
    server.script[:] = [lambda body: reply('{"prompt": "how x"}') if "paint the wood" in str(body) else reply("no")]
    folder, _ = run(small_model, config, tmp_path, monkeypatch, ("dat",))
    [line] = [json.loads(line) for line in (folder / "pair.jsonl").read_text().splitlines()]
    assert (line["behavior"], line["prompt"], line["surface"]) == ("1", "how x", "text")
    found = manifest.read(folder / "pair.json")
    cost, iterations = found["cost"], found["cost"]["rewriter_calls"] - 2 * 2 * 2  # a word-level model may comply at once
    assert iterations in (1, 2) and cost["answers"] == iterations + 1
    assert (cost["unusable_replies"], cost["turns_without_prompt"], cost["behaviors_without_prompt"]) == (8, 4, 2)
    assert found["made_with"]["judge"] == "refusal_prefix" and found["made_with"]["rewriter"]["name"] == "m"
    assert not list(folder.glob("*.npz"))
