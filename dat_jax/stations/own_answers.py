"""The target's own greedy answers to plain prompts, as utility chats.

A small target refuses everything within a few dozen adversarial steps when its utility rows are somebody else's chats: these pull it to
another style and say nothing about where it stood. Its own answers to plain instructions hold it there, and need nothing but the prompts:

    python -m dat_jax.stations.own_answers --model=ID_OR_FOLDER --prompts=data/plain_prompts.txt --output=data/chats.jsonl

Prompts: lines of a text file, or the column (key) `--column` of a .csv or .jsonl file. Prompts that the target refuses, or answers with
nothing of use, are left out and counted: they would teach it to refuse what is harmless. Each batch is written to OUTPUT.unfinished as soon
as it is done, and the same command goes on from there.
"""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from dat_jax import platform, signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.update(platform.environment())

import jax
from absl import app, flags
from etils import epath

from dat_jax import models, sharding
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data import conversations, files, manifest, provenance
from dat_jax.judges import refusal_prefix
from dat_jax.judges.judge import LABELS
from dat_jax.models.huggingface import Model
from dat_jax.settings import LARGEST


def read_plain_prompts(path: str, column: str = "prompt") -> list[str]:
    """Returns the different prompts of a file in their order: a .csv's or .jsonl's `column`, or else the lines that are not blank.

    Raises ValueError naming file, line and key.
    """
    if path.endswith((".csv", ".jsonl")):
        rows = files.read_csv(path, (column,)) if path.endswith(".csv") else files.read_jsonl(path, (column,))
        prompts = [files.require_text(path, line, column, row[column]) for line, row in rows]
    else:
        prompts = [line.strip() for line in files.read_text(path).split("\n")]
    return list(dict.fromkeys(prompt for prompt in prompts if prompt))


def within_block(tokenizer, prompts: Sequence[str], settings: Decoding) -> list[str]:
    """Returns the prompts that fit the prompt block with the chat template around them; ValueError when none does."""
    conversations.check_tokenizer(tokenizer)
    lengths = [conversations.prompt_tokens(tokenizer, [{"role": "user", "content": prompt}], settings.system) for prompt in prompts]
    kept = [prompt for prompt, n in zip(prompts, lengths) if n <= settings.prompt_length]
    if not kept:
        raise ValueError(
            f"the shortest of {len(prompts)} prompts has {min(lengths)} tokens; allowed: --prompt_length={settings.prompt_length}"
        )
    if len(kept) < len(prompts):
        logging.warning("left out %d of %d prompts longer than %d tokens", len(prompts) - len(kept), len(prompts), settings.prompt_length)
    return kept


def write_answers(
    model: Model, prompts: Sequence[str], settings: Decoding, output: str, mesh=None, report: Callable[[str], None] = print
) -> dict[str, int]:
    """Writes the answers as chats, one {"messages": [...]} per line, and returns how many of each label there were.

    Only what the rule-based judge calls compliance is kept. Raises ValueError when OUTPUT.unfinished has other prompts or another model.
    """
    partial = epath.Path(f"{output}.unfinished")
    header = {"model": model.source, "settings": dataclasses.asdict(settings)}
    rows = _resume(partial, header, prompts)
    started, first, victim = time.monotonic(), len(rows), Victim(model, settings, 0, mesh)
    if first:
        report(f"answers: goes on after {first} of {len(prompts)}")
    for start in range(first, len(prompts), settings.batch_size):
        asked = prompts[start : start + settings.batch_size]
        answers = victim.answer([Attempt("", prompt, "") for prompt in asked])
        rows += [{"prompt": p, "answer": a, "label": refusal_prefix.label(a)} for p, a in zip(asked, answers)]
        if jax.process_index() == 0:
            written = header | {"checksum": manifest.of_json(rows)}
            files.write_text(partial, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [written, *rows]))
        left = (time.monotonic() - started) / (len(rows) - first) * (len(prompts) - len(rows))
        report(f"answers: {len(rows)}/{len(prompts)}  {left:.0f} s left")
    kept = [row for row in rows if row["label"] == "comply"]
    if not kept:
        raise ValueError(f"the model refused all {len(rows)} prompts; allowed: plain prompts that it answers")
    chats = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}] for row in kept]
    if jax.process_index() == 0:
        files.write_text(output, "".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats))
        partial.unlink()
    return {label: sum(row["label"] == label for row in rows) for label in LABELS}


def _resume(partial: epath.Path, header: dict, prompts: Sequence[str]) -> list[dict]:
    """The rows that an interrupted call left, checked against what is asked for now."""
    if not partial.exists():
        return []
    (_, found), *rows = files.read_jsonl(str(partial))
    provenance.compare(partial, found, header, "delete it to start anew")
    if "checksum" not in found:
        manifest.say_unchecked(partial)
    elif found["checksum"] != (now := manifest.of_json([row for _, row in rows])):
        raise ValueError(
            f"{partial} was cut, damaged or edited: its {len(rows)} answers have the checksum {now}, and {found['checksum']} was written; "
            "put it back as it was, or delete it to start anew"
        )
    for line, (prompt, row) in enumerate(zip(prompts, [row for _, row in rows]), 2):
        if row["prompt"] != prompt:
            raise ValueError(f"{partial}, line {line}: the answer to {row['prompt']!r:.60}, not to {prompt!r:.60}; delete it to start anew")
    if len(rows) > len(prompts):
        raise ValueError(f"{partial} has answers to {len(rows)} prompts, now there are {len(prompts)}; delete it to start anew")
    return [row for _, row in rows]


def define_flags() -> None:
    """The command line's options."""
    flags.DEFINE_string("model", None, "hub id or folder of the target", required=True)
    flags.DEFINE_string("prompts", None, "text file of one prompt per line, or a .csv or .jsonl file", required=True)
    flags.DEFINE_string("column", "prompt", "column or key of the prompts in a .csv or .jsonl file")
    flags.DEFINE_string("output", None, "the .jsonl file to write, for config.data.chats", required=True)
    for name, value, meaning in (
        ("prompt_length", 64, "as config.data.prompt_length: longer prompts are left out"),
        ("max_new_tokens", 64, "more than config.data.response_length, or answers end too early"),
        ("batch_size", 32, "prompts answered at a time"),
    ):
        flags.DEFINE_integer(name, value, meaning, 1, LARGEST[name])
    flags.DEFINE_string("system", None, "system prompt; none: the chat template's own default")
    flags.DEFINE_string("dtype", "float32", "of the weights: float32 | bfloat16")


def main(argv: list[str]) -> int:
    """Answers the prompts and returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --prompts=FILE", 2)
    values = flags.FLAGS
    settings = Decoding(
        prompt_length=values.prompt_length,
        response_length=1,
        max_new_tokens=values.max_new_tokens,
        batch_size=values.batch_size,
        temperature=0.0,
        perturb="user",
        system=values.system,
    )
    try:
        if epath.Path(values.output).exists():
            raise ValueError(f"--output={values.output} is there already; delete it to answer again")
        prompts = read_plain_prompts(values.prompts, values.column)
        mesh = sharding.make_mesh()
        with jax.set_mesh(mesh):
            model = models.load(values.model, mesh=mesh, dtype=values.dtype)
            counts = write_answers(model, within_block(model.tokenizer, prompts, settings), settings, values.output, mesh)
    except ValueError as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    print(f"{values.output}: {counts['comply']} chats; left out {counts['refuse']} refusals and {counts['lost']} useless answers")
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(signals.ended(main))
