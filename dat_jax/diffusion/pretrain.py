"""Trains a small masked-diffusion sampler from a chat file, where LLaDA's weights are not at hand or too large.

    python -m dat_jax.diffusion.pretrain --chats=data/chats.jsonl --output=data/sampler

Makes a byte-level BPE tokenizer of its own from the chats (a small vocabulary: the head of a large one would cost more than the model), a
LLaDA of a few million weights, and writes both as a Hugging Face folder in LLaDA's format for `config.sampler.model`, with
`pretraining.json` beside it (arguments, bounds on held-out chats). Killed at any moment, the same command goes on from the last saved
state and ends bit for bit the same. At the end it shows prompts sampled for answers that were held out: read them. A model of this size
learns what its chats hold and no more; it is a stand-in for LLaDA, not a small LLaDA.
"""

import dataclasses
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence

from dat_jax import platform, signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.update(platform.environment())

import jax
import numpy as np
from absl import app, flags
from etils import epath
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dat_jax.data import files
from dat_jax.data.chats import first_exchanges, load_chats
from dat_jax.diffusion import learning, making
from dat_jax.diffusion import pool as pool_lib
from dat_jax.diffusion.layout import template
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import Saving
from dat_jax.models.huggingface import Model

SPECIALS = {"pad_token": "<|pad|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>"}
MARKER = "pretraining.json"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The model's sizes; 4,096 tokens and these are about 3 million weights."""

    vocabulary: int = 4096
    width: int = 192
    layers: int = 4
    heads: int = 4


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer trained on the texts, with LLaDA's special tokens; any text can be encoded and decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(SPECIALS):
        raise ValueError(f"the vocabulary is {vocabulary}; allowed: at least {len(alphabet) + len(SPECIALS)}, the bytes and special tokens")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIALS.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIALS)


def train(
    pairs: Sequence[tuple[str, str]],
    sizes: Sizes,
    pool: pool_lib.Pool,
    settings: learning.Learning,
    seed: int,
    report: Callable[[str], None],
    folder: epath.Path | None = None,
    save_every: int = 200,
) -> tuple[Model, dict]:
    """Returns a sampler trained on (prompt, response) pairs, and its bounds on held-out ones (nats per token).

    pool: the layout (prompt_tokens, response_tokens, separator, begin), as the sampler will be used. Longer prompts are left out, longer
    responses cut. folder: of the sampler, in which `state` is the training's state, saved every `save_every` steps, from which an
    interrupted call with the same arguments goes on. Raises ValueError when too few pairs are left.
    """
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], sizes.vocabulary)
    around = template(tokenizer, pool.separator, pool.begin)
    rows, longer = learning.pair_rows(tokenizer, around, pairs, pool.prompt_tokens[1], pool.response_tokens)
    config = ModelConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        mlp_width=round(8 / 3 * sizes.width / 8) * 8,
        model_type="llada",
        causal=False,
        mask_token=tokenizer.mask_token_id,
        tied_head=True,  # a prompt repeats words of its response: copying needs no second table
        max_length=int(rows.tokens_BxT.shape[1]),
        remat=False,
    )
    count = sum(int(np.prod(weight.shape)) for weight in jax.tree.leaves(weights.table(config)))
    report(f"sampler: {len(rows.tokens_BxT)} pairs ({longer} longer ones left out), {len(tokenizer)} tokens, {count / 1e6:.1f} M weights")
    start = weights.initialize(jax.random.key(seed), config)
    # The tokenizer is trained anew by every call; one that came out otherwise must not go on with weights that are not its own.
    about = {"tokenizer": zlib.crc32(tokenizer.backend_tokenizer.to_str().encode()), "steps": settings.steps}
    saving = None if folder is None else Saving(folder / "state", save_every, about)
    params, bounds = learning.learn(start, config, rows, settings, jax.random.key(seed + 1), seed, report, saving, folder)
    return Model(params, config, tokenizer), bounds


def define_flags(into: flags.FlagValues = flags.FLAGS) -> None:
    """The command line's options."""
    flags.DEFINE_string("chats", None, "chat file, as config.data.chats", required=True, flag_values=into)
    integers = (
        ("vocabulary", Sizes.vocabulary, "tokens of the tokenizer"),
        ("width", Sizes.width, "of the model"),
        ("layers", Sizes.layers, "of the model"),
        ("heads", Sizes.heads, "of the model"),
        ("steps", 3000, "training steps"),
        ("batch_size", 32, "pairs per step"),
    )
    making.define_flags(into, integers, learning_rate=2e-3, validate_every=0)


def make(values: flags.FlagValues, report: Callable[[str], None]) -> None:
    """Trains and writes the sampler that the options describe, or what is left of it, and shows prompts of it."""
    started = time.monotonic()
    pairs = first_exchanges(load_chats(values.chats))
    kept, shown = making.set_apart(pairs, values.shown, values.seed, values.chats)
    pool = making.pool(values)
    sizes = Sizes(values.vocabulary, values.width, values.layers, values.heads)
    settings = learning.Learning(
        values.steps, values.batch_size, values.learning_rate, values.prompt_only, validate_every=values.validate_every
    )
    arguments = dataclasses.asdict(sizes) | dataclasses.asdict(settings) | {"chats": f"{zlib.crc32(json.dumps(pairs).encode()):08x}"}
    del arguments["validate_every"]  # how often is measured is no matter
    arguments |= {name: values[name].value for name in (*making.LAYOUT, "shown", "seed")}
    output = epath.Path(files.absolute(values.output))
    if not making.claim(output / MARKER, arguments):
        model, bounds = train(kept, sizes, pool, settings, values.seed, report, output, values.save_every)
        about = {"arguments": arguments, "chats": values.chats, "seconds": round(time.monotonic() - started), "bounds": bounds}
        making.finish(model, output / MARKER, about)
    (output / "state").rmtree(missing_ok=True)
    making.show_all(str(output), pool, shown, values.seed, report)
    report(f"{values.output}: done in {time.monotonic() - started:.0f} s; use it as --config.sampler.model={values.output}")


def main(argv: list[str]) -> int:
    """Trains the sampler, writes it, reads it back and shows prompts of it; returns the exit status."""
    return making.run(make, argv)


if __name__ == "__main__":
    define_flags()
    app.run(signals.ended(main))
