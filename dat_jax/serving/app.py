"""The endpoint's routes: who may ask, what is asked, one line in the log for each request. Texts and keys are in no line."""

import asyncio
import concurrent.futures
import dataclasses
import hashlib
import hmac
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dat_jax.serving import answers as answers_lib
from dat_jax.serving import requests
from dat_jax.serving.batching import Batcher
from dat_jax.serving.programs import Given, Programs
from dat_jax.serving.requests import Ask, Limits, Refusal
from dat_jax.serving.settings import Serve

LARGEST = 16 << 20  # bytes of a request
RETRY_AFTER = 2  # seconds, for who is told that too many wait
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Service:
    """A model that is ready to be asked."""

    programs: Programs
    batcher: Batcher
    limits: Limits
    serve: Serve
    key: str  # "": none is asked for
    text: concurrent.futures.Executor  # of one thread: a tokenizer cannot be asked by two at a time
    pieces: answers_lib.Pieces
    created: int  # seconds since 1970


def service(programs: Programs, limits: Limits, serve: Serve, key: str) -> Service:
    """Returns the service of a model; its threads end with the process."""
    batcher = Batcher(programs.run, programs.shape, programs.batch_size, serve.wait_ms / 1000, serve.waiting)
    text = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="text")
    return Service(programs, batcher, limits, serve, key, text, answers_lib.Pieces(programs.model.tokenizer), int(time.time()))


def application(service: Service) -> Starlette:
    """The routes of a service."""

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> JSONResponse:
        if request.path_params["name"] not in service.limits.names:
            raise Refusal(f"there is no such model; allowed: {service.limits.names[0]!r}", status=404, code="model_not_found")
        return JSONResponse(_model(service))

    async def chat(request: Request) -> JSONResponse:
        return await _completions(service, request, requests.chat)

    async def completion(request: Request) -> JSONResponse:
        return await _completions(service, request, requests.completion)

    found = [("/v1/models", "GET", models), ("/v1/models/{name:path}", "GET", model)]
    found += [("/v1/chat/completions", "POST", chat), ("/v1/completions", "POST", completion)]
    routes = [Route(path, _guarded(service, path, handler), methods=[method]) for path, method, handler in found]
    return Starlette(routes=[Route("/health", health), *routes], exception_handlers={HTTPException: _no_route})


def _guarded(service: Service, path: str, handler: Callable) -> Callable:
    """A handler behind the key, with an error object for whatever goes wrong and a line in the log."""

    async def guarded(request: Request) -> JSONResponse:
        started = time.monotonic()
        try:
            _admit(service, request)
            response = await handler(request)
        except Refusal as refusal:
            response = refused(refusal)
        except ClientDisconnect:
            response = refused(Refusal("the client has gone", status=400))
        except Exception as error:  # its message may hold what the client sent, so the log has its kind and place alone
            logging.error("serve: %s in a request\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            response = refused(Refusal("the server failed; its log says why", status=500))
        counts = getattr(request.state, "counts", "")
        logging.info("serve: %s %s %d%s, %.2f s", request.method, path, response.status_code, counts, time.monotonic() - started)
        return response

    return guarded


def _admit(service: Service, request: Request) -> None:
    """Refusal for a request without the key; without a key in use, for a page of another host that the browser was led to send it."""
    if service.key:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        wanted, found = (hashlib.sha256(text.encode()).digest() for text in (service.key, given.strip()))
        if not hmac.compare_digest(wanted, found) or scheme.lower() != "bearer":
            raise Refusal("the key is absent or wrong; allowed: the header `Authorization: Bearer KEY`", status=401, code="invalid_api_key")
        return
    host = request.headers.get("host", "").rpartition("@")[2].lower()
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name not in (*LOCAL, service.serve.host):
        raise Refusal("the header Host names another machine; allowed: localhost or 127.0.0.1", status=403)


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal("the header Content-Type is another one; allowed: application/json", status=415)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise Refusal(f"the body is too large; allowed: {LARGEST} bytes", status=413)
        parts.append(part)
    return b"".join(parts)


async def _completions(service: Service, request: Request, read: Callable[[dict[str, Any], Any, Limits], Ask]) -> JSONResponse:
    body, tokenizer = await _body(request), service.programs.model.tokenizer
    loop = asyncio.get_running_loop()

    def in_text(function: Callable, *arguments: Any) -> Any:
        return loop.run_in_executor(service.text, function, *arguments)

    ask = await in_text(lambda: read(requests.parse(body), tokenizer, service.limits))
    prompts = [ids for ids in ask.prompts for _ in range(ask.n)]
    new, scores = await _generated(service, ask, prompts)
    stops = service.programs.stop_tokens
    answers = await in_text(lambda: [answers_lib.cut(ask, ids, ids_new, tokenizer, stops) for ids, ids_new in zip(prompts, new)])
    if not scores:
        scores = await _results(service.batcher, answers_lib.given(ask, answers), begun=True)
    about = {
        "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.limits.names[0],
    }
    found = await in_text(answers_lib.response, ask, answers, scores, tokenizer, service.pieces, about)
    usage = found["usage"]
    request.state.counts = f", {len(answers)} answers, {usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    return JSONResponse(found)


async def _generated(service: Service, ask: Ask, prompts: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[Any]]:
    """The new ids of each answer; where scores alone tell them, these too."""
    if not answers_lib.by_scoring(ask):
        return await _results(service.batcher, answers_lib.rows(ask)), []
    if ask.alternatives is None:
        return [[] for _ in prompts], []
    scores = await _results(service.batcher, [Given(ids) for ids in ask.prompts])
    scores = [one for one in scores for _ in range(ask.n)]
    return [answers_lib.likeliest(ask, one) for one in scores], scores


async def _results(batcher: Batcher, rows: Sequence[Any], begun: bool = False) -> list[Any]:
    return list(await asyncio.gather(*map(asyncio.wrap_future, batcher.submit(rows, begun)))) if rows else []


def _model(service: Service) -> dict[str, Any]:
    limits = service.limits
    longest = {"max_prompt_tokens": limits.prompt_tokens, "max_tokens": limits.new_tokens}
    return {"id": limits.names[0], "object": "model", "created": service.created, "owned_by": "dat_jax"} | longest


def refused(refusal: Refusal) -> JSONResponse:
    """The error object of the API."""
    error = {"message": str(refusal), "type": refusal.kind, "param": refusal.param, "code": refusal.code}
    more = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": str(RETRY_AFTER)}}.get(refusal.status)
    return JSONResponse({"error": error}, refusal.status, headers=more)


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    """What is not there, or is asked for in another way; the path may hold anything, and the log does not repeat it."""
    status = getattr(error, "status_code", 404)
    logging.info("serve: %s of another path or method %d", request.method, status)
    allowed = "/v1/chat/completions and /v1/completions (POST), /v1/models and /health (GET)"
    return refused(Refusal(f"no such path or method; allowed: {allowed}", status=status))
