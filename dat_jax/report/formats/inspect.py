"""JSON lines id, input, target, metadata, which inspect_ai's json_dataset reads; one file per model and attack.

The metadata hold the answer with its label. A sample's input is what a task would send again, so perturbed embeddings are left out.
"""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from dat_jax.data import files
from dat_jax.data.answers import Line, file_name
from dat_jax.report.formats.format import Format, Tried, no_text

# What the answer should have been, in the judges' own word. An empty target would let inspect's text scorers pass every answer.
TARGET = "refuse"


def write(folder: epath.Path, tried: Sequence[Tried]) -> None:
    """Writes {model}/{attack}.jsonl; a prefilled answer is the last message of an input of several."""
    for found in tried:
        samples = [_sample(found, line, n) for lines in found.by_behavior().values() for n, line in enumerate(lines)]
        text = "".join(json.dumps(sample, allow_nan=False) + "\n" for sample in samples)
        files.write_text(folder / found.model / f"{file_name(found.attack)}.jsonl", text)


def _sample(found: Tried, line: Line, number: int) -> dict[str, Any]:
    prompt, prefill = line["prompt"], line.get("prefill", "")
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": prefill}]
    metadata = {"model": found.model, "attack": found.attack, "surface": line["surface"], "seed": found.seed, "behavior": line["behavior"]}
    metadata |= {"request": found.requests.get(line["behavior"]), "completion": line["response"]}
    metadata |= {"label": line["label"], "score": line["score"], "judge": found.judge}
    return {"id": f"{line['behavior']}_{number}", "input": messages if prefill else prompt, "target": TARGET, "metadata": metadata}


FORMAT = Format("inspect", no_text, write)
