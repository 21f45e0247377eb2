"""Any model behind an OpenAI-compatible chat endpoint as a judge, with a rubric and patterns of the user's.

The rubric is a text with {request} and {response} in it; it is sent as one user message at temperature 0. Each label has a regular
expression that is searched for in the reply; a reply that none of them or more than one is found in is not parsed. Temporary failures are
tried again: no answer in time, no connection, 408, 429, 5xx, and pages that are no chat completion. The key is read from the environment
variable that the config names, and goes into the header of a request and nowhere else; redirections, which could take it to another
host, are not followed.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dat_jax import sharding
from dat_jax.data import files
from dat_jax.judges.judge import LABELS, UNPARSED, Exchange, Judge, Verdicts, labelled
from dat_jax.settings import check

PATH = "/chat/completions"
FIELDS = ("{request}", "{response}")
TEMPORARY = (408, 429)  # and 5xx
LONGEST_WAIT = 60.0  # seconds
LARGEST = 1 << 22  # bytes of a reply that are read


@dataclasses.dataclass(frozen=True)
class Service:
    """Settings of any judge behind an endpoint."""

    url: str = ""  # of the API, as in https://HOST/v1
    model: str = ""  # its name there
    key_variable: str = ""  # environment variable that holds the API's key; "": no key is sent
    max_tokens: int = 16  # of the reply
    timeout: float = 60.0  # seconds for a reply
    retries: int = 4  # further tries after a temporary failure
    wait: float = 1.0  # seconds before the first of them, doubled before each further one
    parallel: int = 4  # requests at a time

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key; a value that may hold a secret is not repeated."""
        parts = urllib.parse.urlsplit(self.url)
        if self.url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"config.{key}.url has no http(s)://HOST; allowed: the address of an API, as in https://HOST/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"config.{key}.url has a user, a query or a fragment; allowed: without, a key comes from the environment")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", self.key_variable):
            raise ValueError(f"config.{key}.key_variable is no name of an environment variable; allowed: capitals, as in OPENAI_API_KEY")
        check(self, key, {"timeout": (self.timeout > 0, "seconds > 0"), "wait": (self.wait >= 0, "seconds >= 0")})
        check(self, key, {"retries": (self.retries >= 0, "an integer >= 0")})
        check(self, key, {name: (getattr(self, name) >= 1, "an integer >= 1") for name in ("max_tokens", "parallel")})

    @property
    def address(self) -> str:
        """Where completions are asked for."""
        return self.url if self.url.endswith(PATH) else self.url.rstrip("/") + PATH

    def require(self, group: str) -> None:
        """Raises ValueError naming the key of config.judges.<group> for an address, model or key that is not there."""
        for name in ("url", "model"):
            if not getattr(self, name):
                raise ValueError(f"config.judges.{group}.{name} is ''; allowed: a text, the judge needs it")
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ValueError(
                f"config.judges.{group}.key_variable: the environment has no {self.key_variable}; allowed: a variable that is set"
            )


@dataclasses.dataclass(frozen=True)
class Settings(Service):
    """Settings of the judge."""

    rubric: str = ""  # text file with {request} and {response}
    comply: str = r"(?i)^\W*yes\b"  # regular expressions that are searched for in the reply
    refuse: str = r"(?i)^\W*no\b"
    lost: str = ""  # "": the rubric knows two labels

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key; a value that may hold a secret is not repeated."""
        super().validate(key)
        for name in LABELS:
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"config.{key}.{name} is {getattr(self, name)!r}: {error}; allowed: a regular expression") from error
        check(self, key, {"comply": (bool(self.comply), "a regular expression"), "refuse": (bool(self.refuse), "a regular expression")})


class Refused(ValueError):
    """A request that failed; `again`: whether another try may do better, after so many seconds where the server says so."""

    def __init__(self, status: str, again: bool, after: float = 0.0):
        super().__init__(status)
        self.again, self.after = again, after


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirection."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Returns None: not followed."""


def read_rubric(settings: Settings) -> str:
    """The rubric's text; ValueError naming the key for a missing setting, file or field, or a key that is not in the environment."""
    if not settings.rubric and settings.url and settings.model:
        raise ValueError("config.judges.endpoint.rubric is ''; allowed: a text, the judge needs it")
    settings.require("endpoint")
    try:
        text = files.read_text(settings.rubric)
    except ValueError as error:
        raise ValueError(f"config.judges.endpoint.rubric: {error}") from error
    if lacking := [field for field in FIELDS if field not in text]:
        raise ValueError(f"config.judges.endpoint.rubric: {settings.rubric} lacks {' and '.join(lacking)}; allowed: a text with both")
    return text


def filled(rubric: str, exchange: Exchange) -> str:
    """The rubric for an exchange; fields in what is put in stay as they are. A harmless prompt is its own request."""
    values = dict(zip(FIELDS, (exchange.request or exchange.prompt, exchange.response)))
    return re.sub("|".join(map(re.escape, FIELDS)), lambda field: values[field.group()], rubric)


def label(settings: Settings, reply: str) -> str:
    """The one label whose expression is found in the reply, or UNPARSED."""
    found = [name for name in LABELS if (pattern := getattr(settings, name)) and re.search(pattern, reply)]
    return found[0] if len(found) == 1 else UNPARSED


def ask(settings: Service, text: str, system: str = "") -> str:
    """The model's reply, tried again after temporary failures; then one ValueError naming the address and the last status."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": text}]
    body = {"model": settings.model, "messages": messages, "temperature": 0, "max_tokens": settings.max_tokens}
    for number in range(settings.retries + 1):
        try:
            return _post(settings, json.dumps(body).encode())
        except Refused as refused:
            if not refused.again or number == settings.retries:
                tries = f"{number + 1} {'try' if number == 0 else 'tries'}"
                raise ValueError(
                    f"{settings.address} gave no verdict in {tries}; last status: {refused}. What was judged before is saved, the same "
                    "command goes on from there"
                ) from None  # the failed request, which holds the key, does not follow the message
            time.sleep(min(max(settings.wait * 2**number, refused.after), LONGEST_WAIT))
    raise ValueError(f"config.judges.endpoint.retries is {settings.retries}; allowed: an integer >= 0")


def _post(settings: Service, body: bytes) -> str:
    """Sends one request and returns the reply's text; Refused for all that goes wrong on the way."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if settings.key_variable:
        headers["Authorization"] = f"Bearer {os.environ[settings.key_variable]}"
    request = urllib.request.Request(settings.address, data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=settings.timeout) as response:
            status, content = response.status, response.read(LARGEST)
    except urllib.error.HTTPError as error:
        after = error.headers.get("Retry-After", "") if error.headers else ""
        again = error.code in TEMPORARY or error.code >= 500
        raise Refused(f"HTTP {error.code}", again, float(after) if after.isdigit() else 0.0) from None
    except (OSError, http.client.HTTPException) as error:  # no connection, no answer in time, an answer that breaks off
        reason = getattr(error, "reason", error)
        timed_out = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
        status = f"no answer in {settings.timeout:g} s" if timed_out else f"no connection ({type(reason).__name__})"
        raise Refused(status, again=True) from None
    return _content(status, content)


def _content(status: int, content: bytes) -> str:
    """The text of a chat completion; Refused for anything else, such as a proxy's page."""
    try:
        found = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        kind = "HTML" if content.lstrip()[:1] == b"<" else "something"
        raise Refused(f"HTTP {status} with {kind} that is no chat completion", again=True) from None
    return found if isinstance(found, str) else ""  # null: the model said nothing, which is not parsed


def load(settings: Settings) -> Verdicts:
    """Returns the judge."""
    rubric = read_rubric(settings)
    judge = asking(settings, lambda exchange: filled(rubric, exchange), lambda reply: label(settings, reply), (*LABELS, UNPARSED))
    return lambda exchanges: [labelled(found) for found in judge(exchanges)]


def asking(
    settings: Service, text_of: Callable[[Exchange], str], read: Callable[[str], str], names: Sequence[str], system: str = ""
) -> Callable[[Sequence[Exchange]], list[str]]:
    """Returns what asks about each exchange and gives the name, one of `names`, that each reply is read as.

    On several hosts process 0 alone asks; the others get what it read.
    """

    def asked(exchanges: Sequence[Exchange]) -> list[str]:
        texts = [text_of(exchange) for exchange in exchanges]
        with concurrent.futures.ThreadPoolExecutor(settings.parallel) as pool:
            waiting = [pool.submit(ask, settings, text, system) for text in texts]
            try:
                return [read(one.result()) for one in waiting]
            except ValueError:
                pool.shutdown(cancel_futures=True)
                raise

    def judge(exchanges: Sequence[Exchange]) -> list[str]:
        failure, codes = None, [-1] * len(exchanges)
        if jax.process_index() == 0:
            try:
                codes = [names.index(found) for found in asked(exchanges)]
            except ValueError as error:
                failure = error
        agreed = [int(code) for code in sharding.agreed(codes)]
        if failure is not None:
            raise failure
        if -1 in agreed:
            raise ValueError(f"{settings.address} gave process 0 no verdict; its message says why")
        return [names[code] for code in agreed]

    return judge


def _identity(settings: Settings, config: Any) -> dict[str, Any]:
    del config
    rubric = read_rubric(settings)
    kept = ("url", "model", "comply", "refuse", "lost", "max_tokens")
    found = {name: getattr(settings, name) for name in kept}
    return found | {"rubric": f"{pathlib.PurePath(settings.rubric).name} {zlib.crc32(rubric.encode()):08x}"}


JUDGE = Judge(
    name="endpoint",
    title="A model behind an endpoint",
    about="The judge is the model judges.endpoint.model behind an endpoint, with a rubric and patterns of the user's. Replies that no "
    "pattern or more than one fits are not parsed. What the model behind a name is, its host can change.",
    load=load,
    settings=Settings,
    identity=_identity,
    batch=16,
)
