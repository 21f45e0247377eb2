"""Infilled prompts as the CSV original_prompt, inpainted_prompt, which AdversariaLLM's `inpainting` attack reads (its custom_data_path)."""

import csv
import io
from collections.abc import Mapping, Sequence

from dat_jax.data import files
from dat_jax.data.behaviors import Behavior

COLUMNS = ("original_prompt", "inpainted_prompt")


def write_infilled(path, behaviors: Sequence[Behavior], prompts: Mapping[str, Sequence[str]]) -> None:
    """Writes the prompts (behavior id -> prompts) in the order of the behaviors, one row each."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((behavior.text, prompt) for behavior in behaviors for prompt in prompts.get(behavior.id, ()))
    files.write_text(path, text.getvalue())


def read_infilled(path: str, behaviors: Sequence[Behavior]) -> dict[str, list[str]]:
    """Returns behavior id -> prompts, matched by the behavior's text; rows of other behaviors are left out.

    Raises ValueError naming the file where no row is of these behaviors, and file and line for an empty prompt.
    """
    ids = {" ".join(behavior.text.split()): behavior.id for behavior in behaviors}
    found: dict[str, list[str]] = {}
    rows = files.read_csv(path, COLUMNS)
    for line, row in rows:
        if id := ids.get(" ".join(row["original_prompt"].split())):
            found.setdefault(id, []).append(files.require_text(path, line, "inpainted_prompt", row["inpainted_prompt"]))
    if not found:
        raise ValueError(
            f"{path}: none of its {len(rows)} rows is of an evaluation behavior; original_prompt must be its text, e.g. "
            f"{behaviors[0].text!r:.80}" if behaviors else f"{path}: there is no evaluation behavior"
        )  # fmt: skip
    return found
