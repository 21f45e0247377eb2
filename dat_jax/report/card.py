"""The README card of an exported model: what it is, how it was made, what was measured."""

import json

from etils import epath
from ml_collections import ConfigDict

from dat_jax.methods import METHODS


def card(method: str, seed: int, config: ConfigDict, workdir: epath.Path, collapsed: bool) -> str:
    """Returns the card as Markdown; results are those of results.json in the workdir, where an evaluation was run."""
    front = f"---\nbase_model: {config.target.model}\ntags:\n- adversarial-training\n- dat_jax\n---\n"
    title = f"# {config.target.model}, defended with {METHODS[method].paper}\n"
    parts = [front, title, "Weights, tokenizer and chat template load in transformers as they are.\n"]
    if collapsed:
        parts.append("**This run collapsed: during training the model refused most benign prompts.**\n")
    if config.target.dtype not in ("float32", "bfloat16"):
        trained = f"Trained and evaluated with the base's layers in {config.target.dtype}. Here the factors are merged into the base's own"
        parts.append(f"{trained} weights: this very model was not evaluated.\n")
    parts.append(_results(method, seed, workdir))
    settings = json.dumps(json.loads(config.to_json_best_effort()), indent=1, ensure_ascii=False)
    parts.append(f"## Configuration\n\nMethod `{method}`, seed {seed}.\n\n```json\n{settings}\n```\n")
    return "\n".join(parts)


def _results(method: str, seed: int, workdir: epath.Path) -> str:
    path = workdir / "results.json"
    if not path.exists():
        return "## Results\n\nThe model was not evaluated.\n"
    found = json.loads(path.read_text())
    lines = ["## Results\n", "| measure | rate | 95 % interval | of |", "|---|---:|---:|---:|"]
    for group, name, total in (("rows", "attack", "behaviors"), ("utility", "measure", "prompts")):
        for row in found.get(group, []):
            if row["method"] == method and row["seed"] == seed:
                lines.append(f"| {row[name]} | {row['rate']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row[total]} |")
    return "\n".join(lines) + "\n"
