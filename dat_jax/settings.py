"""Settings: frozen dataclasses declared where they are used, shown as groups of the configuration, read back and checked.

A method, an attack or a judge declares its settings as a frozen dataclass with defaults and, where a value can be wrong, a method
`validate(key)`. The schema, the command line, the checks and the suggestions for misspelt keys all follow from the dataclass.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


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


def check(settings: Any, key: str, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raises ValueError for the first field of `settings` whose rule (is it fine, what is allowed) does not hold."""
    for name, (fine, allowed) in rules.items():
        if not fine:
            raise ValueError(f"config.{key}.{name} is {getattr(settings, name)!r}; allowed: {allowed}")
