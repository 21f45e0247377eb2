"""A model behind an OpenAI-compatible chat endpoint: how it is reached, what is tried again, and where its key does not go.

Temporary failures are tried again: no answer in time, no connection, 408, 429, 5xx, and pages that are no chat completion. The key is read
from the environment variable that the settings name, and goes into the header of a request and nowhere else; redirections, which could
take it to another host, are not followed.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from dat_jax.settings import check

PATH = "/chat/completions"
TEMPORARY = (408, 429)  # and 5xx
LONGEST_WAIT = 60.0  # seconds
LARGEST = 1 << 22  # bytes of a reply that are read
Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Connection:
    """How an endpoint is reached."""

    url: str = ""  # of the API, as in https://HOST/v1
    model: str = ""  # its name there
    key_variable: str = ""  # environment variable that holds the API's key; "": no key is sent
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
        check(self, key, {"retries": (self.retries >= 0, "an integer >= 0"), "parallel": (self.parallel >= 1, "an integer >= 1")})

    @property
    def address(self) -> str:
        """Where completions are asked for."""
        return self.url if self.url.endswith(PATH) else self.url.rstrip("/") + PATH


@dataclasses.dataclass(frozen=True)
class Reply:
    """What an endpoint said; tokens: of prompt and reply as it counts them, None where it does not say."""

    text: str
    tokens: int | None = None


class Refused(ValueError):
    """A request that failed; `again`: whether another try may do better, after so many seconds where the server says so."""

    def __init__(self, status: str, again: bool, after: float = 0.0):
        super().__init__(status)
        self.again, self.after = again, after


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirection."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Returns None: not followed."""


def require(connection: Connection, key: str) -> None:
    """Raises ValueError naming the key of a setting that is missing, or of a variable that is not in the environment."""
    for name in ("url", "model"):
        if not getattr(connection, name):
            raise ValueError(f"config.{key}.{name} is ''; allowed: a text, an endpoint needs it")
    if connection.key_variable and not os.environ.get(connection.key_variable):
        raise ValueError(f"config.{key}.key_variable: the environment has no {connection.key_variable}; allowed: a variable that is set")


def ask_all(
    connection: Connection, dialogs: Sequence[Sequence[Message]], temperature: float, max_tokens: int
) -> tuple[list[Reply | None], ValueError | None]:
    """The replies to conversations, several asked at a time, and the first failure.

    After a failure nothing more is asked; what was under way is waited for. A conversation without reply has None.
    """
    replies: list[Reply | None] = []
    failure: ValueError | None = None
    with concurrent.futures.ThreadPoolExecutor(connection.parallel) as pool:
        waiting = [pool.submit(ask, connection, dialog, temperature, max_tokens) for dialog in dialogs]
        for one in waiting:
            try:
                replies.append(one.result())
            except concurrent.futures.CancelledError:
                replies.append(None)
            except ValueError as error:
                failure = failure or error
                pool.shutdown(wait=False, cancel_futures=True)
                replies.append(None)
    return replies, failure


def ask(connection: Connection, messages: Sequence[Message], temperature: float, max_tokens: int) -> Reply:
    """The model's reply, tried again after temporary failures; then one ValueError naming the address, the tries and the last status."""
    body = {"model": connection.model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens}
    for number in range(connection.retries + 1):
        try:
            return _post(connection, json.dumps(body).encode())
        except Refused as refused:
            if not refused.again or number == connection.retries:
                tries = f"{number + 1} {'try' if number == 0 else 'tries'}"
                # `from None`: the failed request, which holds the key, does not follow the message.
                raise ValueError(f"{connection.address} gave no reply in {tries}; last status: {refused}") from None
            time.sleep(min(max(connection.wait * 2**number, refused.after), LONGEST_WAIT))
    raise ValueError(f"retries is {connection.retries}; allowed: an integer >= 0")


def _post(connection: Connection, body: bytes) -> Reply:
    """Sends one request and returns the reply; Refused for all that goes wrong on the way."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if connection.key_variable:
        headers["Authorization"] = f"Bearer {os.environ[connection.key_variable]}"
    request = urllib.request.Request(connection.address, data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=connection.timeout) as response:
            status, content = response.status, response.read(LARGEST)
    except urllib.error.HTTPError as error:
        after = error.headers.get("Retry-After", "") if error.headers else ""
        again = error.code in TEMPORARY or error.code >= 500
        raise Refused(f"HTTP {error.code}", again, float(after) if after.isdigit() else 0.0) from None
    except (OSError, http.client.HTTPException) as error:  # no connection, no answer in time, an answer that breaks off
        reason = getattr(error, "reason", error)
        timed_out = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
        status = f"no answer in {connection.timeout:g} s" if timed_out else f"no connection ({type(reason).__name__})"
        raise Refused(status, again=True) from None
    return _reply(status, content)


def _reply(status: int, content: bytes) -> Reply:
    """The text of a chat completion; Refused for anything else, such as a proxy's page."""
    try:
        found = json.loads(content)
        text = found["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        kind = "HTML" if content.lstrip()[:1] == b"<" else "something"
        raise Refused(f"HTTP {status} with {kind} that is no chat completion", again=True) from None
    usage = found.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    # null: the model said nothing. Halves of surrogate pairs, which JSON can spell, are no text that a file can hold.
    said = text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
    return Reply(said, tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None)
