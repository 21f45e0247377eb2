"""The endpoint: what it answers against the decoder and against torch, whatever else is asked at the time; what it refuses; its key."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import http.client
import importlib.util
import json
import logging
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import judges, serving, stations
from dat_jax.attacks.attack import Ask, Context
from dat_jax.config import defaults, validate
from dat_jax.judges.judge import Exchange
from dat_jax.models import decoding, huggingface, transformer
from dat_jax.serving import answers, programs, requests
from dat_jax.serving.programs import Programs, Prompt
from dat_jax.serving.requests import ALTERNATIVES, Limits, Refusal
from dat_jax.serving.serve import get_config
from dat_jax.serving.settings import KEY, Serve, read_key
from dat_jax.stations import serve as station
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.rewriter import Rewriter

app = pytest.importorskip("dat_jax.serving.app", reason="starlette is not installed (pip install 'dat_jax[serve]')")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'dat_jax[serve]')")

P, N, B = 16, 8, 4
SECRET = "a-secret-of-this-test"
JSON = {"Content-Type": "application/json", "Host": "localhost:8000"}
CHAT = {"messages": [{"role": "user", "content": "how did people paint"}], "temperature": 0}


@pytest.fixture(scope="module")
def limits(small_model):
    return Limits(("small", "/runs/small"), 8 * P, N, small_model.config.vocab_size, 32, prompt_hint=", as config.data.prompt_length says")


@pytest.fixture(scope="module")
def service(small_model, limits):
    """The model behind the API; `sizes` of its programs are the batches that were worked on."""

    @dataclasses.dataclass(frozen=True)
    class Counted(Programs):
        sizes: list = dataclasses.field(default_factory=list, compare=False)

        def run(self, rows):
            self.sizes.append(len(rows))
            return super().run(rows)

    found = app.service(Counted(small_model, P, N, B, ALTERNATIVES), limits, Serve(wait_ms=100), "")
    yield found
    found.batcher.close()


def asked(service, path, body=None, headers=JSON, method="POST"):
    """(status, body, headers) of a request that goes to the application without a network."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = []

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()], "scheme": "http", "root_path": ""}
    asyncio.run(app.application(service)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:])), headers


def decoded(model, ids, **how):
    """What the decoder alone gives for a prompt's ids."""
    rows = transformer.embed(model.params, model.config, jnp.asarray([ids]))
    how = {"max_new_tokens": N, "stop_tokens": (model.tokenizer.eos_token_id,)} | how
    return np.asarray(decoding.generate(model.params, model.config, rows, jnp.ones((1, len(ids)), bool), jax.random.key(0)[None], **how)[0])


def test_a_chat_gets_what_the_decoder_gives_for_the_conversation(service, small_model):
    status, found, _ = asked(service, "/v1/chat/completions", CHAT | {"model": "small"})
    ids = small_model.tokenizer("<user> how did people paint <end> <assistant>", add_special_tokens=False).input_ids
    wanted = decoded(small_model, ids)
    [choice] = found["choices"]
    assert status == 200 and choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == small_model.tokenizer.decode(wanted, skip_special_tokens=True).strip() != ""
    ended = small_model.tokenizer.eos_token_id in wanted
    assert choice["finish_reason"] == ("stop" if ended else "length") and choice["logprobs"] is None
    count = list(wanted).index(small_model.tokenizer.eos_token_id) + 1 if ended else N
    assert found["usage"] == {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
    assert found["object"] == "chat.completion" and found["model"] == "small"


def test_rows_of_one_batch_have_their_own_temperature_and_nucleus(small_model):
    """Against the choice with the same values for the whole batch, which is compared with transformers elsewhere."""
    how = [(0.0, 1.0), (0.5, 1.0), (2.0, 0.5), (0.5, 0.3)] * 4
    temperature_B, top_p_B = np.array(how, np.float32).T
    keys_B, h_BxD = jax.vmap(jax.random.key)(jnp.arange(16)), jax.random.normal(jax.random.key(7), (16, small_model.config.width))
    model = small_model.params, small_model.config, keys_B
    found_B = decoding._choose_per_row(*model, decoding.PerRow(temperature_B, top_p_B, np.full(16, N)), h_BxD, 3)
    alone = [decoding._choose(*model, temperature, top_p, h_BxD, 3) for temperature, top_p in how[:4]]
    np.testing.assert_array_equal(found_B, [alone[row % 4][row] for row in range(16)])
    assert len({tuple(np.asarray(found_B)[row::4].tolist()) for row in range(4)}) == 4


def test_rows_of_one_batch_have_their_own_length(small_model):
    rows = transformer.embed(small_model.params, small_model.config, jnp.asarray([[3, 9, 7]] * 2))
    per_row = decoding.PerRow(np.zeros(2, np.float32), np.ones(2, np.float32), np.array([N, 3], np.int32))
    keys_B, valid_BxP = jax.vmap(jax.random.key)(jnp.arange(2)), jnp.ones((2, 3), bool)
    found = decoding.generate(small_model.params, small_model.config, rows, valid_BxP, keys_B, per_row=per_row, max_new_tokens=N)
    assert 0 not in found[0].tolist() and found[1].tolist() == [*found[0, :3].tolist(), *[0] * (N - 3)]


MANY = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"temperature": 1.5, "seed": 3, "n": 3}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 3, "logprobs": True, "top_logprobs": 2}),
    ("/v1/completions", {"prompt": ["wash the door", "paint the wood with a brush"], "temperature": 0.7, "top_p": 0.8, "seed": 1}),
    ("/v1/completions", {"prompt": [[4, 9, 12], [7] * 20], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}),
]


def test_requests_that_wait_share_batches_and_get_what_each_gets_alone(service):
    alone = [asked(service, *one)[1]["choices"] for one in MANY]
    service.programs.sizes.clear()
    with concurrent.futures.ThreadPoolExecutor(2 * len(MANY)) as pool:
        together = [one[1]["choices"] for one in pool.map(lambda one: asked(service, *one), [*MANY, *MANY])]
    assert together == [*alone, *alone]
    assert max(service.programs.sizes) == B and len(service.programs.sizes) < 2 * len(MANY) + 4
    texts = [choice["message"]["content"] for choice in alone[1]]
    assert len(set(texts)) > 1 and [choice["index"] for choice in alone[1]] == [0, 1, 2]
    assert asked(service, "/v1/chat/completions", MANY[1][1] | {"seed": 4})[1]["choices"] != alone[1]


def test_log_probabilities_are_those_of_torch(service, small_model, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    huggingface.save(dataclasses.replace(small_model, source=""), str(tmp_path / "exported"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    prompts = [[5, 30, 7, 8, 33, 12], list(np.random.default_rng(0).integers(5, 40, 20).tolist())]
    body = {"prompt": prompts, "max_tokens": 1, "logprobs": 2, "echo": True, "temperature": 0, "seed": 1234}
    status, found, _ = asked(service, "/v1/completions", body)
    assert status == 200
    for ids, choice in zip(prompts, found["choices"]):
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()
        new = int(logp[-1].argmax())
        columns, following = choice["logprobs"], [*ids[1:], new]
        assert columns["token_logprobs"][0] is None and columns["top_logprobs"][0] is None and len(columns["tokens"]) == len(ids) + 1
        np.testing.assert_allclose(columns["token_logprobs"][1:], logp[np.arange(len(ids)), following], atol=2e-5)
        for row, top, own in zip(logp, columns["top_logprobs"][1:], columns["token_logprobs"][1:]):
            likeliest = np.sort(row)[::-1][:2]
            np.testing.assert_allclose(sorted(top.values(), reverse=True)[:2], likeliest, atol=2e-5)
            assert own in top.values() and len(top) in (2, 3)  # the own token's number stands among the likeliest, exactly
        assert (
            columns["top_logprobs"][-1][columns["tokens"][-1]] == columns["token_logprobs"][-1] == max(columns["top_logprobs"][-1].values())
        )
        assert choice["finish_reason"] == ("stop" if new == small_model.tokenizer.eos_token_id else "length")
    none = asked(service, "/v1/completions", body | {"max_tokens": 0, "prompt": prompts[0]})[1]
    assert none["choices"][0]["logprobs"]["token_logprobs"] == found["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert none["usage"] == {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}


def test_log_probabilities_of_a_chats_answer_are_those_of_its_tokens(service, small_model):
    found = asked(service, "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3})[1]
    entries = found["choices"][0]["logprobs"]["content"]
    ids = small_model.tokenizer("<user> how did people paint <end> <assistant>", add_special_tokens=False).input_ids
    new = decoded(small_model, ids)[: len(entries)]
    tokens = jnp.asarray([[*ids, *new]])
    logp = jax.nn.log_softmax(transformer.logits(small_model.params, small_model.config, tokens, jnp.ones(tokens.shape, bool))[0])
    wanted = logp[np.arange(len(ids) - 1, len(ids) + len(new) - 1), new]
    np.testing.assert_allclose([entry["logprob"] for entry in entries], wanted, atol=2e-5)
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] and len(entry["top_logprobs"]) == 3 for entry in entries)
    said = "".join(entry["token"] for entry in entries if not entry["token"].strip().startswith("<"))
    assert said.split() == found["choices"][0]["message"]["content"].split()


def test_an_answer_ends_before_a_stop_text(service):
    whole = asked(service, "/v1/completions", {"prompt": "wash the door", "temperature": 0, "max_tokens": N})[1]
    words = whole["choices"][0]["text"].split()
    stop = f"{words[0]} {words[1]}"
    found = asked(service, "/v1/completions", {"prompt": "wash the door", "temperature": 0, "max_tokens": N, "stop": ["zz", stop]})[1]
    [choice] = found["choices"]
    assert choice["finish_reason"] == "stop" and choice["text"].strip() == "" and found["usage"]["completion_tokens"] == 2
    echoed = asked(service, "/v1/completions", {"prompt": "wash the door", "temperature": 0, "max_tokens": N, "echo": True})[1]
    assert echoed["choices"][0]["text"] == "wash the door" + whole["choices"][0]["text"]


def test_an_answer_says_why_it_ended(small_model, limits):
    tokenizer = small_model.tokenizer
    wash, door, end = tokenizer.convert_tokens_to_ids(["wash", "door", "<end>"])
    ask = requests.completion({"prompt": "the"}, tokenizer, limits)
    assert answers.cut(ask, ask.prompts[0], [wash, door], tokenizer, [end]) == answers.Answer((wash, door), " wash door", "length")
    assert answers.cut(ask, ask.prompts[0], [wash, end], tokenizer, [end]) == answers.Answer((wash, end), " wash", "stop")
    stopped = dataclasses.replace(ask, stop=("zz", "door", "wash d"), chat=True)
    assert answers.cut(stopped, ask.prompts[0], [door, wash, door, end], tokenizer, [end]) == answers.Answer((door,), "", "stop")
    row = Prompt((5,), 3, 0.0, 1.0, 0)
    assert programs._ended(row, np.array([9, end, 0, 0]), (end,)) == [9, end] and programs._ended(row, np.array([9, 8, 7, 6]), ()) == [
        9,
        8,
        7,
    ]


def test_control_tokens_of_a_client_stay_text(small_model, limits):
    tokenizer = small_model.tokenizer
    spelled = "paint <end> <assistant> wood"
    ask = requests.chat({"messages": [{"role": "user", "content": [{"type": "text", "text": spelled}]}]}, tokenizer, limits)
    names = ("<pad>", "<end>", "<user>", "<assistant>")
    control = [token for token in ask.prompts[0] if token in tokenizer.convert_tokens_to_ids(list(names))]
    assert tokenizer.convert_ids_to_tokens(control) == ["<user>", "<end>", "<assistant>"]
    ask = requests.completion({"prompt": spelled}, tokenizer, limits)
    assert ask.prompts[0][0] == tokenizer.convert_tokens_to_ids("paint") and tokenizer.eos_token_id not in ask.prompts[0]
    ids = tokenizer(spelled, add_special_tokens=False).input_ids
    assert requests.completion({"prompt": ids}, tokenizer, limits).prompts == (tuple(ids),) and tokenizer.eos_token_id in ids


def test_a_system_prompt_of_the_run_is_for_conversations_without_one(small_model, limits):
    limits = dataclasses.replace(limits, system="the door")
    with_it = requests.chat(CHAT, small_model.tokenizer, limits).prompts
    messages = [{"role": "system", "content": "the door"}, *CHAT["messages"]]
    assert with_it == requests.chat({"messages": messages}, small_model.tokenizer, limits).prompts
    messages[0] = {"role": "system", "content": "wash"}
    assert with_it != requests.chat({"messages": messages}, small_model.tokenizer, limits).prompts


def test_a_text_that_is_no_chat_begins_as_the_tokenizer_begins_it(small_model, limits):
    class WithBos:
        bos_token_id = 3

        def __call__(self, text):
            return type("Encoded", (), {"input_ids": [3]})()

    assert requests._beginning(WithBos()) == [3] and requests._beginning(small_model.tokenizer) == []


USER = [{"role": "user", "content": "a"}]
WRONG = [
    (b"{", 400, "JSON"),
    (b"\xff", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    (b'{"messages": NaN}', 400, "JSON"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "JSON"),
    ([], 400, "a list"),
    ({}, 400, "messages is null"),
    ({"messages": "a"}, 400, "messages is a text"),
    ({"messages": []}, 400, "messages is a list"),
    ({"messages": ["a"]}, 400, "messages[0] is a text"),
    ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role is 'tool'; allowed: system, user, assistant"),
    ({"messages": [{"role": [], "content": "a"}]}, 400, "messages[0].role is a list"),
    ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content is 3"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content is null"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "a part that is no text"),
    ({"messages": [{**USER[0], "tool_calls": [{}]}]}, 400, "tool_calls is not supported"),
    ({"messages": USER, "stream": True}, 400, "stream is not supported"),
    ({"messages": USER, "stream": 0}, 400, "stream is not supported"),
    ({"messages": USER, "temperature": "1"}, 400, "temperature is a text"),
    ({"messages": USER, "temperature": True}, 400, "temperature is true"),
    ({"messages": USER, "temperature": 2.5}, 400, "temperature is 2.5"),
    ({"messages": USER, "temperature": 10**400}, 400, "temperature is 1000"),
    (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', 400, "temperature is inf"),
    ({"messages": USER, "top_p": 0}, 400, "top_p is 0"),
    ({"messages": USER, "n": 0}, 400, "n is 0"),
    ({"messages": USER, "n": 33}, 400, "n is 33"),
    ({"messages": USER, "seed": 1.5}, 400, "seed is 1.5"),
    ({"messages": USER, "max_tokens": 9}, 400, "max_tokens is 9; allowed: an integer from 1 to 8"),
    ({"messages": USER, "max_completion_tokens": 0}, 400, "max_completion_tokens is 0"),
    ({"messages": USER, "stop": [""]}, 400, "stop is a list"),
    ({"messages": USER, "top_logprobs": 2}, 400, "without logprobs"),
    ({"messages": USER, "logprobs": 1}, 400, "logprobs is 1; allowed: true or false"),
    ({"messages": USER, "top_k": 5}, 400, "'top_k' is not known"),
    ({"messages": USER, "frequency_penalty": 0.1}, 400, "frequency_penalty is not supported"),
    ({"messages": USER, "model": 1}, 400, "model is 1"),
    ({"messages": USER, "model": "other"}, 404, "no such model; allowed: 'small'"),
    ({"messages": [{"role": "user", "content": "a " * 200}]}, 400, "the prompt has 203 tokens; allowed: 1 to 128, as config.data.prompt"),
    ({"prompt": "a", "logprobs": 21}, 400, "logprobs is 21"),
    ({"prompt": "a", "logprobs": True}, 400, "logprobs is true"),
    ({"prompt": "a", "best_of": 2}, 400, "best_of"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
    ({"prompt": ""}, 400, "the prompt has 0 tokens"),
    ({"prompt": []}, 400, "prompt is a list"),
    ({"prompt": [3, "a"]}, 400, "neither a text nor"),
    ({"prompt": [3, 1000]}, 400, "the token id 1000"),
    ({"prompt": [-1]}, 400, "the token id -1"),
    ({"prompt": [True]}, 400, "neither a text nor"),
    ({"prompt": ["a"] * 20, "n": 2}, 400, "40 answers"),
    ({"prompt": ["a", [5] * 129]}, 400, "prompt 1 has 129 tokens"),
]


def test_what_cannot_be_answered_is_an_error_object(service):
    service.programs.sizes.clear()
    for body, status, words in WRONG:
        path = "/v1/completions" if isinstance(body, dict) and "prompt" in body else "/v1/chat/completions"
        found, content, _ = asked(service, path, body)
        error = content["error"]
        assert (found, set(error)) == (status, {"message", "type", "param", "code"}), body
        assert words in error["message"] and error["type"] == "invalid_request_error", (body, error)
    assert not service.programs.sizes


def test_what_clients_send_without_meaning_it_is_accepted(service):
    more = {"frequency_penalty": 0.0, "presence_penalty": 0, "stream": False, "logit_bias": None, "user": "u", "tools": []}
    more |= {"response_format": {"type": "text"}, "max_completion_tokens": 2}
    assert asked(service, "/v1/chat/completions", CHAT | more)[0] == 200


def test_other_paths_methods_and_headers(service):
    assert asked(service, "/health", method="GET", headers={})[:2] == (200, {"status": "ok"})
    status, found, _ = asked(service, "/v1/models", method="GET")
    assert status == 200 and [model["id"] for model in found["data"]] == ["small"]
    assert asked(service, "/v1/models//runs/small", method="GET")[1]["id"] == "small"
    assert [asked(service, f"/v1/{path}", method="GET")[0] for path in ("models/other", "chat/completions", "nothing")] == [404, 405, 404]
    assert "error" in asked(service, "/v1/nothing")[1]
    assert asked(service, "/v1/completions", b"x" * (app.LARGEST + 1))[0] == 413
    assert asked(service, "/v1/completions", {"prompt": "a"}, JSON | {"Content-Type": "text/plain"})[0] == 415
    hosts = {"localhost": 200, "127.0.0.1:8000": 200, "[::1]:8000": 200, "evil.example": 403, "localhost.evil.example:80": 403, "": 403}
    assert {host: asked(service, "/v1/models", method="GET", headers={"Host": host})[0] for host in hosts} == hosts


def test_the_key(service, caplog):
    caplog.set_level(logging.DEBUG)
    locked = dataclasses.replace(service, key=SECRET)
    given = {"": 401, SECRET: 401, f"Bearer {SECRET}x": 401, f"Basic {SECRET}": 401, f"Bearer {SECRET}": 200, f"bearer {SECRET}": 200}
    for text, status in given.items():
        headers = {"Host": "any.example"} | ({"Authorization": text} if text else {})
        found, body, answered = asked(locked, "/v1/models", method="GET", headers=headers)
        assert found == status and SECRET not in json.dumps(body)
        assert status != 401 or (body["error"]["code"] == "invalid_api_key" and answered["www-authenticate"] == "Bearer")
    assert asked(locked, "/v1/completions", {"prompt": "a"})[0] == 401
    assert asked(locked, "/health", method="GET", headers={})[0] == 200
    assert SECRET not in caplog.text


def test_one_line_per_request_without_its_text(service, caplog):
    caplog.set_level(logging.DEBUG, "root")
    asked(service, "/v1/chat/completions", CHAT)
    asked(service, "/v1/chat/completions", {"messages": [{"role": "brush", "content": "paint"}]})
    asked(service, "/v1/paint%0Awood", method="GET")
    lines = [record.getMessage() for record in caplog.records if record.name == "root"]
    assert len(lines) == 3 and not any(word in line for line in lines for word in ("paint", "brush", "wood", "people"))
    assert lines[0].startswith("serve: POST /v1/chat/completions 200, 1 answers, 7 + 8 tokens") or "tokens" in lines[0]
    assert lines[1].startswith("serve: POST /v1/chat/completions 400, ") and lines[2] == "serve: GET of another path or method 404"


def test_too_many_wait_and_a_batch_that_fails(small_model, limits):
    """The devices are held by an event; a failed batch is its requests' error alone."""
    begun, go, failing = threading.Event(), threading.Event(), [RuntimeError("out of memory in paint")]

    class Slow(Programs):
        def run(self, rows):
            begun.set()
            go.wait(60)
            if failing:
                raise failing.pop()
            return super().run(rows)

    found = app.service(Slow(small_model, P, N, B, ALTERNATIVES), limits, Serve(wait_ms=0, waiting=1), "")
    body = {"prompt": "a", "temperature": 0, "max_tokens": 2}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(asked, found, "/v1/completions", body)
        assert begun.wait(60)
        second = pool.submit(asked, found, "/v1/completions", body)
        while not found.batcher._queue:
            time.sleep(0.01)
        status, content, headers = asked(found, "/v1/completions", body)
        go.set()
    assert status == 429 and headers["retry-after"] and content["error"]["type"] == "rate_limit_error"
    status, content, _ = first.result()
    assert (status, content["error"]["type"]) == (500, "server_error") and "paint" not in json.dumps(content)
    assert second.result()[0] == 200
    found.batcher.close()
    with pytest.raises(Refusal):
        found.batcher.submit([])


@pytest.fixture
def server(service, in_a_thread):
    """The address of a real server in a thread."""
    import uvicorn

    config = uvicorn.Config(app.application(service), lifespan="off", log_config=None, access_log=False, ws="none")
    with in_a_thread(uvicorn.Server(config)) as address:
        yield address


def test_the_judge_that_asks_an_endpoint_asks_this_one(server, tmp_path):
    (tmp_path / "rubric.txt").write_text("how {request} the {response}")
    config = defaults()
    config.judges.endpoint.update(
        {"url": f"{server}/v1", "model": "small", "rubric": str(tmp_path / "rubric.txt"), "max_tokens": 4, "comply": r"\w", "refuse": "zz"}
    )
    exchanges = [Exchange(str(n), "paint", "paint", "", word) for n, word in enumerate(["wood", "door", "brush"])]
    assert [verdict.label for verdict in judges.load("endpoint", config)(exchanges)] == ["comply"] * 3


def test_the_rewriter_that_asks_an_endpoint_asks_this_one(server, service, tmp_path):
    """A rewriting attack's prompts are what this endpoint answers, the same as when it is asked directly."""
    config = defaults()
    config.target.model, config.data.eval_behaviors = "x/y", "z.csv"
    config.rewriter.update({"max_new_tokens": 4, "temperature": 0.0})
    config.rewriter.endpoint.update({"url": f"{server}/v1", "model": "small"})
    validate(config, data=False)
    asks = [Ask(str(n), "gd", (("user", f"how {text}"),), unlike=text) for n, text in enumerate(("paint the wood", "wash the door"))]
    inputs = Inputs(config=config, folder=tmp_path, seed=0, behaviors=[], eval_behaviors=[], chats=[], rewrites=[], utility_sets={})
    spent = Context(0)
    written = Rewriter(inputs, None)(asks, spent)
    assert spent.spent["rewriter_calls"] == 2 and spent.spent["rewriter_tokens"] > 0
    for ask, text in zip(asks, written, strict=True):
        body = {"model": "small", "messages": [{"role": "user", "content": ask.messages[0][1]}], "temperature": 0, "max_tokens": 4}
        connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert text == json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] != ask.unlike


def config_of(folder, tmp_path, **more):
    config = get_config()
    config.target.model = str(folder)
    config.data.prompt_length = P
    config.evaluation.update({"max_new_tokens": N, "batch_size": 8})
    config.serve.update({"port": 0} | more)
    validate(config, data=False)
    return config


def test_the_mode_serves_a_folder_until_a_signal_ends_it(folder, tmp_path):
    """In a process of its own, which the signal ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dat_jax.main", "--mode=serve", f"--workdir={tmp_path / 'run'}", f"--config.target.model={folder}"]
    command += [f"--config.serve.port={port}", f"--config.data.prompt_length={P}", f"--config.evaluation.max_new_tokens={N}"]
    process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    answer, deadline = None, time.monotonic() + 240
    try:
        while answer is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"Content-Type": "application/json"})
                answer = json.loads(connection.getresponse().read())
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 75 and "dat_jax: SIGTERM" in said, said
    assert answer["model"] == "model" and answer["choices"][0]["message"]["content"]
    assert not [path.name for path in (tmp_path / "run").glob("*") if path.name != "compilation_cache"]


def test_what_is_wrong_is_said_before_weights_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(station, "load_target", lambda *_: pytest.fail("weights were read"))
    monkeypatch.delenv(KEY, raising=False)

    def error(**more):
        with pytest.raises(ValueError) as caught:
            station.run(config_of(folder, tmp_path, **more), tmp_path)
        return str(caught.value)

    assert f"config.serve.host is '0.0.0.0', which others can reach, and the environment has no {KEY}" in error(host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert f"{taken.getsockname()[1]}: Address already in use" in error(port=taken.getsockname()[1])
    (folder.parent / "bare").mkdir(exist_ok=True)
    (folder.parent / "bare" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        station.run(config_of(folder.parent / "bare", tmp_path), tmp_path)
    config = config_of(folder, tmp_path)
    config.evaluation.batch_size = 3
    with pytest.raises(ValueError, match=r"config\.evaluation\.batch_size is 3; allowed: a multiple"):
        station.run(config, tmp_path)
    config.world.enabled = True
    with pytest.raises(ValueError, match=r"config\.world\.enabled is True"):
        station.run(config, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'dat_jax[serve]'" in error()
    with pytest.raises(ValueError, match="--mode=serve,report; allowed"):
        stations.run("serve,report", config, str(tmp_path))


def test_a_key_that_is_weak_or_no_header_is_refused_without_being_repeated():
    assert read_key(Serve(), {}) == "" and read_key(Serve(host="0.0.0.0"), {KEY: SECRET}) == SECRET
    for key in ("k1", "a key with blanks in it", "k" * 20 + "é", "k" * 20 + "\n"):
        with pytest.raises(ValueError, match=KEY) as caught:
            read_key(Serve(), {KEY: key})
        assert key not in str(caught.value)
    near = {
        host: Serve(host=host).is_loopback for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "a.b")
    }
    assert list(near.values()) == [True] * 4 + [False] * 4


@pytest.mark.parametrize(("key", "value"), [("host", "a b"), ("host", ""), ("port", 65536), ("wait_ms", -1.0), ("waiting", 0)])
def test_settings_that_cannot_be(key, value):
    config = get_config()
    config.target.model = "m"
    config.serve[key] = value
    with pytest.raises(ValueError, match=f"config.serve.{key} is"):
        validate(config, data=False)


def test_serving_needs_no_configuration_file():
    ours = f"--config={serving.CONFIG}"
    assert serving.with_config(["--mode=serve", "--config.target.model=m"]) == [ours, "--mode=serve", "--config.target.model=m"]
    assert serving.with_config(["--mode", "serve"])[0] == ours
    for words in (
        ["--mode=serve", "--config=c.py"],
        ["--mode=serve", "--config", "c.py"],
        ["--mode=judge"],
        ["--config.target.model=serve"],
    ):
        assert serving.with_config(words) == words


def test_pieces_keep_their_blank_and_are_the_text_together(small_model):
    pieces = answers.Pieces(small_model.tokenizer)
    ids = small_model.tokenizer("wash the door", add_special_tokens=False).input_ids
    assert "".join(map(pieces.of, ids)) == " wash the door"
