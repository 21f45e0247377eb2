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
import sys
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
from absl import app, flags, logging
from etils import epath
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dat_jax.data import files, manifest, provenance
from dat_jax.data.behaviors import Behavior
from dat_jax.data.chats import first_exchanges, load_chats
from dat_jax.data.prompts import PromptRecord
from dat_jax.diffusion import learning
from dat_jax.diffusion import pool as pool_lib
from dat_jax.diffusion.layout import template
from dat_jax.models import huggingface, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.fitting import Saving
from dat_jax.models.huggingface import Model
from dat_jax.settings import LARGEST, LARGEST_INTEGER

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
    state: epath.Path | None = None,
    save_every: int = 200,
) -> tuple[Model, dict]:
    """Returns a sampler trained on (prompt, response) pairs, and its bounds on held-out ones (nats per token).

    pool: the layout (prompt_tokens, response_tokens, separator, begin), as the sampler will be used. Longer prompts are left out, longer
    responses cut. state: a folder for the training's state, saved every `save_every` steps, from which an interrupted call with the same
    arguments goes on. Raises ValueError when too few pairs are left.
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
    saving = None if state is None else Saving(state, save_every, about)
    params, bounds = learning.learn(start, config, rows, settings, jax.random.key(seed + 1), seed, report, saving)
    return Model(params, config, tokenizer), bounds


def show(model: Model, pool: pool_lib.Pool, responses: Sequence[str], seed: int) -> list[PromptRecord]:
    """Returns `pool.samples` prompts sampled for each response."""
    around = template(model.tokenizer, pool.separator, pool.begin)
    forbidden = pool_lib.forbidden_tokens(model.tokenizer, model.config.vocab_size, model.tokenizer.mask_token_id)
    behaviors = [Behavior(str(number), "", (response,), ()) for number, response in enumerate(responses)]
    return pool_lib.draw(pool, model, behaviors, around, forbidden, seed, 0)[0]


def define_flags(into: flags.FlagValues = flags.FLAGS) -> None:
    """The command line's options."""
    flags.DEFINE_string("chats", None, "chat file, as config.data.chats", required=True, flag_values=into)
    about_output = "folder of the sampler: new, empty, or of an interrupted call with the same options"
    flags.DEFINE_string("output", None, about_output, required=True, flag_values=into)
    for name, value, meaning in (
        ("vocabulary", Sizes.vocabulary, "tokens of the tokenizer"),
        ("width", Sizes.width, "of the model"),
        ("layers", Sizes.layers, "of the model"),
        ("heads", Sizes.heads, "of the model"),
        ("steps", 3000, "training steps"),
        ("batch_size", 32, "pairs per step"),
        ("save_every", 200, "steps between saved states, from which an interrupted call goes on"),
        ("shortest_prompt", 8, "tokens, as config.sampler.prompt_tokens; of the prompts that are shown"),
        ("longest_prompt", 24, "tokens, as config.sampler.prompt_tokens; pairs with longer ones are left out"),
        ("response_tokens", 40, "as config.sampler.response_tokens; longer responses are cut"),
        ("shown", 6, "answers, kept out of the training, for which prompts are shown at the end"),
    ):
        flags.DEFINE_integer(name, value, meaning, 1, LARGEST.get(name, LARGEST_INTEGER), flag_values=into)
    flags.DEFINE_integer("seed", 0, "of everything that is drawn", lower_bound=0, flag_values=into)
    flags.DEFINE_float("learning_rate", 2e-3, "peak, in AdamW", lower_bound=1e-9, flag_values=into)
    flags.DEFINE_float("prompt_only", 0.75, "share of the rows in which the prompt alone is masked", 0.0, 1.0, flag_values=into)
    flags.DEFINE_string("separator", pool_lib.Pool.separator, "between prompt and response, as config.sampler.separator", flag_values=into)


def begin(output: epath.Path, arguments: dict) -> bool:
    """Claims the folder for these arguments; returns whether the sampler in it is finished already.

    Raises ValueError when it holds something else, or a sampler made with other arguments, naming the first that differs.
    """
    marker = output / MARKER
    if not marker.exists():
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"--output={output} is not empty, and no {MARKER} in it says that this command made it")
        manifest.write(marker, {"arguments": arguments})
        return False
    found = manifest.load(marker, f"put it back as it was, or delete {output} to make the sampler again").content
    provenance.compare(marker, found["arguments"], arguments, "use another --output")
    return "bounds" in found


def make(values: flags.FlagValues, report: Callable[[str], None]) -> None:
    """Trains and writes the sampler that the options describe, or what is left of it, and shows prompts of it."""
    started = time.monotonic()
    pairs = first_exchanges(load_chats(values.chats))
    if len(pairs) < 10 * values.shown:
        raise ValueError(f"{values.chats}: {len(pairs)} different exchanges; allowed: at least {10 * values.shown} (10 x --shown)")
    lengths = (min(values.shortest_prompt, values.longest_prompt), values.longest_prompt)
    pool = pool_lib.Pool(
        samples=3, keep=1, prompt_tokens=lengths, response_tokens=values.response_tokens, separator=values.separator, batch_size=3
    )
    sizes = Sizes(values.vocabulary, values.width, values.layers, values.heads)
    settings = learning.Learning(values.steps, values.batch_size, values.learning_rate, values.prompt_only)
    arguments = dataclasses.asdict(sizes) | dataclasses.asdict(settings) | {"chats": f"{zlib.crc32(json.dumps(pairs).encode()):08x}"}
    layout = ("shortest_prompt", "longest_prompt", "response_tokens", "separator")
    arguments |= {name: values[name].value for name in (*layout, "shown", "seed")}
    output = epath.Path(files.absolute(values.output))
    order = np.random.default_rng(values.seed).permutation(len(pairs))
    shown, kept = [pairs[i] for i in order[: values.shown]], [pairs[i] for i in order[values.shown :]]
    if not begin(output, arguments):
        model, bounds = train(kept, sizes, pool, settings, values.seed, report, output / "state", values.save_every)
        for half_written in output.glob("*.safetensors"):
            half_written.unlink()
        huggingface.save(model, str(output))
        about = {"arguments": arguments, "chats": values.chats, "seconds": round(time.monotonic() - started), "bounds": bounds}
        manifest.write(output / MARKER, about)  # last: the bounds say that the folder is complete
    (output / "state").rmtree(missing_ok=True)
    for record in show(huggingface.load(str(output)), pool, [response for _, response in shown], values.seed):
        report(f"{record.response[:70]!r:<75} <- {record.prompt!r}")
    report(f"{values.output}: done in {time.monotonic() - started:.0f} s; use it as --config.sampler.model={values.output}")


def main(argv: list[str]) -> int:
    """Trains the sampler, writes it, reads it back and shows prompts of it; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --chats=FILE", 2)
    logging.set_verbosity(logging.WARNING)  # Orbax speaks through absl's logger
    try:
        make(flags.FLAGS, lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(signals.ended(main))
