"""Utility: prompts that must be answered, the borderline ones among them (over-refusal), and contrasts that must be refused."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dat_jax.data import files


@dataclasses.dataclass(frozen=True)
class UtilityPrompt:
    """A prompt, the answer it must get where there is one (""; otherwise), and the form or type it belongs to."""

    id: str
    prompt: str
    response: str = ""
    form: str = ""


def read_utility_prompts(path: str) -> dict[str, list[UtilityPrompt]]:
    """Reads prompts as JSON lines {"id", "prompt", optional "response" and "form"}, or as a CSV of XSTest or OR-Bench, told by its columns.

    Returns: {"safe": prompts, "unsafe": contrasts} for XSTest's CSV (prompt, label, type), which holds both; {"safe": prompts} for
    JSON lines and for OR-Bench's (prompt, category), of which a file holds prompts of one kind.

    Raises:
      ValueError: naming file, line and key, also for a prompt or an id that occurs twice.
    """
    sets: dict[str, list[UtilityPrompt]] = {"safe": []}
    seen: dict[tuple[str, str, str], int] = {}

    def once(line: int, name: str) -> None:
        """Raises ValueError if the newest prompt of a set, or its id, is there already."""
        for what in ("prompt", "id"):
            value = getattr(sets[name][-1], what)
            if (before := seen.setdefault((name, what, value), line)) != line:
                raise ValueError(
                    f"{path}, line {line}: the {what} {value!r:.80} stands there more than once ({name}), first on line {before}; "
                    "allowed: each once"
                )

    rows = files.read_csv(path, ("prompt",)) if str(path).endswith(".csv") else []
    if rows and "category" in rows[0][1] and "label" not in rows[0][1]:
        for line, row in rows:
            sets["safe"].append(UtilityPrompt(str(line), files.require_text(path, line, "prompt", row["prompt"]), form=row["category"]))
            once(line, "safe")
    elif rows:
        files.require_keys(path, 1, list(rows[0][1]), ("prompt", "label", "type"))
        sets["unsafe"] = []
        for line, row in rows:
            if row["label"] not in sets:
                raise ValueError(f"{path}, line {line}: label is {row['label']!r}; allowed: safe | unsafe")
            prompt = files.require_text(path, line, "prompt", row["prompt"])
            sets[row["label"]].append(UtilityPrompt(row.get("id") or str(line), prompt, form=row["type"]))
            once(line, row["label"])
    else:
        for line, row in files.read_jsonl(path, ("id", "prompt")):
            texts = {key: row.get(key) or "" for key in ("response", "form")}
            for key, text in texts.items():
                if not isinstance(text, str):
                    raise ValueError(f"{path}, line {line}: {key} is {text!r}; allowed: a text")
            prompt, id = files.require_text(path, line, "prompt", row["prompt"]), row["id"]
            if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
                raise ValueError(f"{path}, line {line}: id is {id!r}; allowed: a text or an integer")
            sets["safe"].append(UtilityPrompt(str(id), prompt, texts["response"], texts["form"]))
            once(line, "safe")
    return sets


def load_sets(benign: str, borderline: str, unsafe: str = "") -> dict[str, list[UtilityPrompt]]:
    """The sets of the config keys `data.benign`, `data.borderline` and `data.unsafe`, any of which may be empty, by their names.

    The unsafe contrasts of an XSTest CSV given as borderline are "unsafe", too. Raises ValueError where both files have some.
    """
    sets = {}
    if benign:
        sets["benign"] = read_utility_prompts(benign)["safe"]
    if borderline:
        found = read_utility_prompts(borderline)
        sets["borderline"] = found["safe"]
        if found.get("unsafe"):
            sets["unsafe"] = found["unsafe"]
    if unsafe:
        if "unsafe" in sets:
            raise ValueError(f"config.data.unsafe is {unsafe!r}, and {borderline} has unsafe contrasts of its own; allowed: one of the two")
        sets["unsafe"] = read_utility_prompts(unsafe)["safe"]
    return sets


def spread(prompts: Sequence[UtilityPrompt], limit: int) -> list[UtilityPrompt]:
    """At most `limit` prompts, evenly spaced, so that a file sorted by form keeps all of them; 0: all."""
    if not limit or limit >= len(prompts):
        return list(prompts)
    return [prompts[i] for i in np.linspace(0, len(prompts) - 1, limit).round().astype(int)]
