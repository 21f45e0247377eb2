"""Turns UltraChat-style files into one chat dataset: `python -m dat_jax.data.prepare --output=DIR [--tokenizer=ID] FILE [FILE ...]`.

Reads JSON lines or parquet, checks every row, drops conversations whose prompt is longer than the block it must fit (where a tokenizer is
given) and writes ArrayRecord through TFDS, without TensorFlow; `config.data.chats=DIR` reads it.
"""

import json

from dat_jax import signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

import tensorflow_datasets as tfds
from absl import app, flags, logging
from etils import epath

from dat_jax.data import chats, conversations

_OUTPUT = flags.DEFINE_string("output", None, "folder of the dataset", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "hub id or folder of a tokenizer: drops conversations that do not fit")
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 256, "longest prompt kept, in tokens")


class Chats(tfds.core.GeneratorBasedBuilder):
    """Conversations with one feature, `messages` (JSON text)."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, rows, **kwargs):
        """`rows`: the conversations to write."""
        self._rows = rows
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"messages": tfds.features.Text()}), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, row in enumerate(self._rows):
            yield i, {"messages": json.dumps(row, ensure_ascii=False)}


def write(rows: list[list[dict[str, str]]], folder: str) -> None:
    """Writes conversations as a TFDS dataset in ArrayRecord files of the folder itself; what is not complete stands beside it."""
    partial = epath.Path(f"{folder.rstrip('/')}.unfinished")
    partial.rmtree(missing_ok=True)
    builder = Chats(rows, data_dir=partial, file_format="array_record")
    builder.download_and_prepare()
    epath.Path(builder.data_dir).rename(folder)  # at once: a folder that is not empty is refused
    partial.rmtree()


def main(argv: list[str]) -> None:
    """Reads the files named on the command line and writes the dataset."""
    if len(argv) < 2:
        raise app.UsageError("name at least one .jsonl or .parquet file")
    folder = epath.Path(_OUTPUT.value)
    if folder.exists() and any(folder.iterdir()):
        raise app.UsageError(f"--output={folder} is not empty")
    rows = [row for path in argv[1:] for row in chats.load_chats(path)]
    kept = rows
    if _TOKENIZER.value:
        import transformers  # here: only this option needs it

        tokenizer = transformers.AutoTokenizer.from_pretrained(_TOKENIZER.value)
        conversations.check_tokenizer(tokenizer)
        kept = [row for row in rows if conversations.prompt_tokens(tokenizer, row[:-1]) <= _PROMPT_LENGTH.value]
        logging.info(
            "dropped %d of %d conversations with more than %d prompt tokens", len(rows) - len(kept), len(rows), _PROMPT_LENGTH.value
        )
    if not kept:
        raise app.UsageError(f"no conversation is left of {len(rows)}; allowed: prompts of at most --prompt_length={_PROMPT_LENGTH.value}")
    write(kept, str(folder))
    logging.info("wrote %d conversations to %s", len(kept), folder)


if __name__ == "__main__":
    app.run(signals.ended(main))
