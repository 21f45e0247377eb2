"""Any model behind an OpenAI-compatible chat endpoint as a judge, with a rubric and patterns of the user's.

The rubric is a text with {request} and {response} in it; it is sent as one user message at temperature 0. Each label has a regular
expression that is searched for in the reply; a reply that none of them or more than one is found in is not parsed. How the endpoint is
asked, and again after temporary failures, is `dat_jax.endpoint`.
"""

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dat_jax import endpoint, sharding
from dat_jax.data import files
from dat_jax.endpoint import Connection
from dat_jax.judges.judge import LABELS, UNPARSED, Exchange, Judge, Verdicts, labelled
from dat_jax.settings import check

FIELDS = ("{request}", "{response}")


@dataclasses.dataclass(frozen=True)
class Service(Connection):
    """Settings of any judge behind an endpoint."""

    max_tokens: int = 16  # of the reply

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key; a value that may hold a secret is not repeated."""
        super().validate(key)
        check(self, key, {"max_tokens": (self.max_tokens >= 1, "an integer >= 1")})


@dataclasses.dataclass(frozen=True)
class Settings(Service):
    """Settings of the judge: what is asked, and how replies are read."""

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


def read_rubric(settings: Settings) -> str:
    """The rubric's text; ValueError naming the key for a missing setting, file or field, or a key that is not in the environment."""
    endpoint.require(settings, "judges.endpoint")
    if not settings.rubric:
        raise ValueError("config.judges.endpoint.rubric is ''; allowed: a text, the judge needs it")
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
        first = [{"role": "system", "content": system}] if system else []
        dialogs = [[*first, {"role": "user", "content": text_of(exchange)}] for exchange in exchanges]
        replies, failure = endpoint.ask_all(settings, dialogs, temperature=0, max_tokens=settings.max_tokens)
        if failure is not None:
            raise ValueError(f"{failure}. What was judged before is saved, the same command goes on from there")
        return [read(reply.text if reply else "") for reply in replies]

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
    content=lambda exchange: (exchange.request or exchange.prompt, exchange.response),
)
