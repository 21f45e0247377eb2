"""Settings: frozen dataclasses declared where they are used, shown as groups of the configuration, read back and checked.

A method, an attack or a judge declares its settings as a frozen dataclass with defaults and, where a value can be wrong, a method
`validate(key)`; where it can be wrong for one model and right for another, a method `fits(key, model)`. The schema, the command line, the
checks and the suggestions for misspelt keys all follow from the dataclass.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

LARGEST_NUMBER = 1e300  # the infinities and NaN are not below it either
LARGEST_INTEGER = (1 << 31) - 1  # arrays count with 32 bits
# Of keys by whose size arrays are made or threads started, whatever group they are in: above what anybody wants, below what hurts.
LARGEST = {
    **dict.fromkeys(("prompt_length", "response_length", "prompt_tokens", "response_tokens", "max_new_tokens", "max_tokens"), 1 << 20),
    **dict.fromkeys(("batch_size", "adversarial_rows", "utility_rows", "micro_batch", "candidates"), 1 << 20),
    **dict.fromkeys(("likelihood_samples", "draws"), 1 << 20),
    **dict.fromkeys(("samples", "keep", "attempts", "answers", "topk", "rows", "restarts", "pairs"), 1 << 24),
    **dict.fromkeys(("vocabulary", "longest_prompt", "shortest_prompt"), 1 << 20),
    **dict.fromkeys(("rank", "parallel", "width"), 1 << 14),
    **dict.fromkeys(("layers", "heads"), 1 << 10),
}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """For what has nothing to set."""


def as_config(settings: Any) -> ConfigDict:
    """Returns the config group of a settings object: its fields as keys, settings inside it as groups."""
    return ConfigDict({f.name: _as_value(getattr(settings, f.name)) for f in dataclasses.fields(settings)})


def _as_value(value: Any) -> Any:
    return as_config(value) if dataclasses.is_dataclass(value) else value


def read(kind: type, group: Mapping[str, Any]) -> Any:
    """Returns the settings object of class `kind` from a config group, which may hold further keys that are not its own."""
    default = kind()
    values = {}
    for field in dataclasses.fields(kind):
        before, value = getattr(default, field.name), group[field.name]
        inside = dataclasses.is_dataclass(before) and not isinstance(before, type)
        values[field.name] = read(type(before), value) if inside else tuple(value) if isinstance(before, tuple) else value
    return kind(**values)


def validate(settings: Any, key: str) -> None:
    """Calls `validate` of a settings object and of those inside it; `key` is the group's place in the config.

    Raises ValueError naming the key, the value found and what is allowed.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            validate(value, f"{key}.{field.name}")
    if hasattr(settings, "validate"):
        settings.validate(key)


def fits(settings: Any, key: str, model: Any) -> None:
    """Calls `fits` of a settings object and of those inside it with a ModelConfig: what cannot be checked without the model.

    Raises ValueError naming the key, the value found and what the model has.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            fits(value, f"{key}.{field.name}", model)
    if hasattr(settings, "fits"):
        settings.fits(key, model)


def check(settings: Any, key: str, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raises ValueError for the first field of `settings` whose rule (is it fine, what is allowed) does not hold."""
    for name, (fine, allowed) in rules.items():
        if not fine:
            raise ValueError(f"config.{key}.{name} is {getattr(settings, name)!r}; allowed: {allowed}")


def dotted(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key with its groups, as it is written on the command line, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def no_such_key(key: str, known: Iterable[str], before: str) -> ValueError:
    """The error of a key that is not known, with the nearest one; `before` is what both are written with, as in "--config."."""
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return ValueError(f"{before}{key}: no such key" + (f"; did you mean {before}{near[0]}?" if near else ""))


def check_schema(config: ConfigDict, schema: ConfigDict, pairs: tuple[str, ...]) -> None:
    """Raises ValueError for the first key that the schema does not have or the config lacks, and for a value that no key could have.

    Such a value has another type than the schema's, is a number that is not finite, or is a list in which something stands twice.
    `pairs` are the keys of two numbers, smallest and largest, which may be equal.
    """
    known, found = dict(dotted(schema)), dict(dotted(config))
    for key in (key for key in found if key not in known):
        raise no_such_key(key, known, "config.")
    for key in (key for key in known if key not in found):
        raise ValueError(f"config.{key} is missing; its default is {known[key]!r}")
    for key, value in found.items():
        if isinstance(known[key], (tuple, list)):
            _check_list(key, value, known[key], key in pairs)
        else:
            _check_value(key, value, known[key])


def _check_list(key: str, value: Any, default: Sequence[Any], pair: bool) -> None:
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"config.{key} is {value!r}; allowed: a list such as {default!r}")
    for part in value:
        _check_value(key, part, default[0] if default else "")  # the lists that are empty by default hold names
    if pair and len(value) != 2:
        raise ValueError(f"config.{key} is {value!r}; allowed: two numbers, smallest and largest")
    if not pair and len(set(value)) < len(value):
        raise ValueError(f"config.{key} is {value!r}; allowed: each once")


def _check_value(key: str, value: Any, default: Any) -> None:
    allowed = {bool: "True or False", int: "an integer", float: "a finite number", str: "a text"}.get(type(default), "a text or None")
    if isinstance(default, bool) or isinstance(value, bool):
        fine = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        fine = isinstance(value, (int, float)) and abs(value) < LARGEST_NUMBER
    elif default is None:
        fine = value is None or isinstance(value, str)
    elif isinstance(default, int):
        most = LARGEST.get(key.rpartition(".")[2], LARGEST_INTEGER)
        fine, allowed = isinstance(value, int) and value <= most, f"an integer up to {most}"
    else:
        fine = isinstance(value, type(default))
    if not fine:
        raise ValueError(f"config.{key} is {value!r}; allowed: {allowed}")
