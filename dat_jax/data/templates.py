"""Jailbreak templates of the user's: texts with a place for the request, from JSON lines or from PyRIT's YAML files."""

import re
from typing import Any

import yaml
from etils import epath

from dat_jax.data import files
from dat_jax.data.behaviors import Behavior

DEEPEST = 20  # lists and objects inside each other
Found = tuple[str, str, str]  # (file and line, name, template)
# PyRIT writes {{ prompt }}, the HarmBench list [INSERT PROMPT HERE], others {prompt}.
PLACE = re.compile(r"\{\{\s*prompt\s*\}\}|\[INSERT PROMPT HERE\]|\{prompt\}")


def read_templates(path: str) -> dict[str, str]:
    """Returns name -> template, of JSON lines name, template; of a .yaml file with the keys name and value; or of a folder of these.

    Raises ValueError naming file, line and key: for a template without a place for the request, a name that stands twice, no template.
    """
    place = epath.Path(path)
    if place.exists() and place.is_dir():
        found = [pair for file in sorted(place.glob("*.yaml")) for pair in _of_yaml(str(file))]
        if not found:
            raise ValueError(f"{path}: no .yaml file there; allowed: a folder of PyRIT's templates, or JSON lines name, template")
    else:
        found = _of_yaml(path) if path.endswith((".yaml", ".yml")) else _of_lines(path)
    templates: dict[str, str] = {}
    for where, name, template in found:
        if not PLACE.search(template):
            raise ValueError(f"{where}: the template {name!r} has no place for the request; allowed: {{{{ prompt }}}} somewhere in it")
        if name in templates:
            raise ValueError(f"{where}: the template {name!r} stands there twice; allowed: each once")
        templates[name] = template
    return templates


def fill(template: str, behavior: Behavior) -> str:
    """Returns the template with the behavior's request in every place for it."""
    return PLACE.sub(lambda _: behavior.text, template)


def _of_lines(path: str) -> list[Found]:
    def text(line: int, row: dict[str, Any], key: str) -> str:
        return files.require_text(path, line, key, row[key])

    rows = files.read_jsonl(path, ("name", "template"))
    return [(f"{path}, line {line}", text(line, row, "name"), text(line, row, "template")) for line, row in rows]


def _of_yaml(path: str) -> list[Found]:
    text = files.read_text(path)
    try:
        _check_shape(path, text)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1 if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: not YAML: {error.__class__.__name__}") from error
    except ValueError as error:  # of a date or number that is none
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}; allowed: an object with the keys name and value")
    files.require_keys(path, 1, list(content), ("name", "value"), "key")
    return [(path, files.require_text(path, 1, "name", content["name"]), files.require_text(path, 1, "value", content["value"]))]


def _check_shape(path: str, text: str) -> None:
    """Raises ValueError for a key of the file's object that stands twice, of which YAML takes the last, and for deep nesting.

    The events are read one by one, as deep as is allowed: building the objects takes long, or all of Python's stack, for thousands of them.
    """
    depth, keys, expected = 0, [], True
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if depth == 1 and isinstance(event, yaml.NodeEvent):
            if expected:
                keys.append(getattr(event, "value", ""))
            expected = not expected
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{path}, line {event.start_mark.line + 1}: lists or objects inside each other too deeply; allowed: {DEEPEST}")
    if twice := files.repeated(keys):
        raise ValueError(f"{path}: the key {twice!r} stands there more than once; allowed: each once")
