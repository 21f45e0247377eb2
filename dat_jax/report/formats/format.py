"""What a format of results is: a name, what it cannot say, and a function that writes one seed's answers in it."""

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from dat_jax.data import files
from dat_jax.data.answers import Line

TYPED = ("text", "prefill")  # surfaces on which all that reaches the model is text


@dataclasses.dataclass(frozen=True)
class Tried:
    """One model's judged answers to one attack under one seed."""

    model: str
    attack: str
    seed: int
    judge: str  # whose labels and scores the lines have
    made_with: Mapping[str, Any]  # of the file of answers; {} where it does not say
    when: datetime.datetime  # that the file was written, UTC
    lines: Sequence[Line]  # with label and score, those of a behavior in the order in which they were tried
    requests: Mapping[str, str]  # behavior -> its text, where an attack that sends it as it is was run
    places: Mapping[str, int]  # behavior -> its place among the evaluation's, from 0
    categories: Mapping[str, str] = dataclasses.field(default_factory=dict)  # behavior -> its category, where the behaviors have any
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict)  # behavior -> its target; {} in files of earlier versions
    per_answer: Mapping[str, float] = dataclasses.field(default_factory=dict)  # flops and seconds, the file's own spread evenly

    def by_behavior(self) -> dict[str, list[Line]]:
        """The lines of each behavior."""
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line["behavior"], []).append(line)
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The attack's own settings."""
        return dict(self.made_with.get("settings", {}))

    @property
    def decoding(self) -> dict[str, Any]:
        """How the answers were decoded; an attack's own temperature goes before the evaluation's."""
        asked = self.made_with.get("decoding", {}) | self.settings
        return {key: asked[key] for key in ("temperature", "max_new_tokens") if key in asked}


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of FORMATS. write(folder, all of a seed) writes the lines that `lacks` has no word against."""

    name: str
    lacks: Callable[[Tried, Line], str]  # why a line cannot be said in this format; "" where it can
    write: Callable[[epath.Path, Sequence[Tried]], None]


def no_text(tried: Tried, line: Line) -> str:
    """Why a line is not a conversation of texts; "" where it is."""
    del tried
    return "" if line["surface"] in TYPED else "with a perturbed model or input"


def no_prompt(tried: Tried, line: Line) -> str:
    """Why a line is not one prompt and its answer; "" where it is."""
    return no_text(tried, line) or ("with a prefilled answer" if line.get("prefill") else "")


def no_request(tried: Tried, line: Line) -> str:
    """Why the behavior's own text is not known; "" where it is."""
    return "" if line["behavior"] in tried.requests else "of behaviors whose own text was not sent"


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a JSON file as the other tools' own json.dump does: non-ASCII characters escaped, as they read with any encoding."""
    files.write_text(path, json.dumps(content, indent=4, allow_nan=False) + "\n")
