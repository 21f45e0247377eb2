"""Utility: prompts that must be answered, the borderline ones among them (over-refusal), and contrasts that must be refused."""

import dataclasses

from dat_jax.data import files


@dataclasses.dataclass(frozen=True)
class UtilityPrompt:
    """A prompt, the answer it must get where there is one (""; otherwise), and the form or type it belongs to."""

    id: str
    prompt: str
    response: str = ""
    form: str = ""


# measure -> (set of prompts, field of a judged line, value that is counted, whether more of it is better)
MEASURES = {
    "compliance": ("benign", "label", "comply", True),
    "benign_refusal": ("benign", "label", "refuse", False),
    "exact_utility": ("benign", "exact", True, True),
    "over_refusal": ("borderline", "label", "refuse", False),
    "borderline_compliance": ("borderline", "label", "comply", True),
    "unsafe_refusal": ("unsafe", "label", "refuse", True),
}


def read_prompts(path: str) -> dict[str, list[UtilityPrompt]]:
    """Reads prompts as JSON lines {"id", "prompt", optional "response" and "form"} or as XSTest's CSV (prompt, label, type).

    Returns: {"safe": prompts} for JSON lines; {"safe": prompts, "unsafe": contrasts} for the CSV, which holds both.

    Raises:
      ValueError: naming file, line and key, also for a prompt that occurs twice.
    """
    sets: dict[str, list[UtilityPrompt]] = {"safe": []}
    if str(path).endswith(".csv"):
        sets["unsafe"] = []
        for line, row in files.read_csv(path, ("prompt", "label", "type")):
            if row["label"] not in sets:
                raise ValueError(f"{path}, line {line}: label is {row['label']!r}; allowed: safe | unsafe")
            prompt = files.require_text(path, line, "prompt", row["prompt"])
            sets[row["label"]].append(UtilityPrompt(row.get("id") or str(line), prompt, form=row["type"]))
    else:
        for line, row in files.read_jsonl(path, ("id", "prompt")):
            texts = {key: row.get(key) or "" for key in ("response", "form")}
            for key, text in texts.items():
                if not isinstance(text, str):
                    raise ValueError(f"{path}, line {line}: {key} is {text!r}; allowed: a text")
            prompt = files.require_text(path, line, "prompt", row["prompt"])
            sets["safe"].append(UtilityPrompt(str(row["id"]), prompt, texts["response"], texts["form"]))
    seen: set[tuple[str, str]] = set()
    for name, prompts in sets.items():
        for item in prompts:
            if (name, item.prompt) in seen:
                raise ValueError(f"{path}: the prompt {item.prompt!r:.80} stands there more than once ({name}); allowed: each once")
            seen.add((name, item.prompt))
    return sets


def load_sets(benign: str, borderline: str) -> dict[str, list[UtilityPrompt]]:
    """The sets of the config keys `data.benign` and `data.borderline`, either of which may be empty: "benign", "borderline", "unsafe".

    The unsafe contrasts of an XSTest CSV given as borderline become "unsafe".
    """
    sets = {}
    if benign:
        sets["benign"] = read_prompts(benign)["safe"]
    if borderline:
        found = read_prompts(borderline)
        sets["borderline"] = found["safe"]
        if found.get("unsafe"):
            sets["unsafe"] = found["unsafe"]
    return sets
