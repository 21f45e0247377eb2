"""Jailbreak templates of the user's: texts with a place for the request, from JSON lines or from PyRIT's YAML files."""

import re
from typing import Any

import yaml
from etils import epath

from dat_jax.data import files
from dat_jax.data.behaviors import Behavior

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
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1 if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: not YAML: {error.__class__.__name__}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}; allowed: an object with the keys name and value")
    files.require_keys(path, 1, list(content), ("name", "value"), "key")
    return [(path, files.require_text(path, 1, "name", content["name"]), files.require_text(path, 1, "value", content["value"]))]
