"""JailbreakBench's attack-artifacts/{METHOD}/{attack_type}/{model}.json, and attack-info.json beside them.

It has one prompt per behavior: the first that broke it, else the last that was tried. A prompt is a string: prefilled answers and
perturbed embeddings are left out. Numbers of tokens are not kept in the answers' files.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from dat_jax.attacks import ATTACKS
from dat_jax.data import provenance
from dat_jax.data.answers import Line, file_name
from dat_jax.report.formats.format import Format, Tried, no_prompt, no_request, write_json

TYPES = {"templates": "manual", "infilling": "transfer", "test_cases": "transfer", "replay": "transfer"}  # of attacks with given attempts
TYPES |= {"infilling_adapted": "black_box"}  # of the model under attack it has the answers alone


def write(folder: epath.Path, tried: Sequence[Tried]) -> None:
    """Writes one artifact per attack and model, and which there are."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for found in tried:
        method, kind = file_name(found.attack), attack_type(found.attack)
        write_json(folder / "attack-artifacts" / method / kind / f"{found.model}.json", artifact(found, method, kind))
        kinds.setdefault(method, {})[found.model] = [kind]
    for method, models in kinds.items():
        write_json(folder / "attack-artifacts" / method / "attack-info.json", {"models": models})


def attack_type(name: str) -> str:
    """What the attacker had: texts of somebody else's, the model's likelihoods and gradients, or its answers."""
    kind = name.partition(":")[0]
    attack = ATTACKS.get(kind)
    return TYPES.get(kind, "white_box" if attack and attack.adaptive and attack.uses_target else "black_box")


def artifact(found: Tried, method: str, kind: str) -> dict[str, Any]:
    """The content of one file."""
    entries = [_entry(found, id, lines) for id, lines in found.by_behavior().items()]
    broken = sum(entry["jailbroken"] for entry in entries)
    own = {key: value if isinstance(value, (str, int, float)) else str(value) for key, value in provenance.flat(found.settings).items()}
    parameters = {
        "method": method,
        "model": found.model,
        "attack_type": kind,
        "defense": None,
        "evaluation_date": f"{found.when:%Y-%m-%d}",
        "attack_success_rate": broken / len(entries),
        "total_number_of_jailbreaks": broken,
        "total_number_of_queries": sum(entry["number_of_queries"] for entry in entries),
        "total_prompt_tokens": None,
        "total_response_tokens": None,
        "evaluation_llm_provider": "vllm",  # the format knows two: this one stands for weights at hand, litellm for somebody's server
        "number_of_submitted_prompts": len(entries),
        "method_parameters": {"tool": "dat_jax", "judge": found.judge, "seed": found.seed, **own},
    }
    return {"parameters": parameters, "jailbreaks": entries}


def _entry(found: Tried, id: str, lines: Sequence[Line]) -> dict[str, Any]:
    first = next((number for number, line in enumerate(lines) if line["label"] == "comply"), None)
    shown = lines[-1 if first is None else first]
    return {
        "index": found.places[id],
        "goal": found.requests[id],
        "behavior": id,
        "category": found.categories.get(id, ""),
        "prompt": shown["prompt"],
        "response": shown["response"],
        "number_of_queries": len(lines),
        "queries_to_jailbreak": None if first is None else first + 1,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": first is not None,
    }


FORMAT = Format("jailbreakbench", lambda tried, line: no_prompt(tried, line) or no_request(tried, line), write)
