"""Turns a causal LM into a masked-diffusion LM, where no sampler speaks the target's language, domain or tokenizer.

    python -m dat_jax.diffusion.adapt --model=HuggingFaceTB/SmolLM2-135M-Instruct --pairs=data/pairs.jsonl --output=data/sampler

As Dream was made from Qwen 2.5 and DiffuLLaMA from Llama: the same weights without the causal mask, a token of the tokenizer that nothing
uses (or a new one) as the mask, logits that still predict the token after their position, and LLaDA's loss on (prompt, response) pairs,
mostly with the prompt masked and the response given. Writes a Hugging Face folder in Dream's format for `config.sampler.model`, with
`adaptation.json` beside it (arguments, bounds on held-out pairs). Killed at any moment, the same command goes on from the last saved state
and ends bit for bit the same. At the end it shows prompts sampled for responses that were held out: read them.
"""

import dataclasses
import json
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from dat_jax import platform, signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.update(platform.environment())

import jax
import jax.numpy as jnp
from absl import app, flags
from etils import epath

from dat_jax.data import files
from dat_jax.data.chats import first_exchanges, load_chats
from dat_jax.data.plain_text import around_turns
from dat_jax.diffusion import layout, learning, making
from dat_jax.diffusion import pool as pool_lib
from dat_jax.models import huggingface, lora
from dat_jax.models.config import ModelConfig
from dat_jax.models.families import dream
from dat_jax.models.fitting import Saving
from dat_jax.models.huggingface import Model
from dat_jax.settings import LARGEST_INTEGER

Params = dict[str, Any]
MARKER = "adaptation.json"
NEW_MASK = "<|mask|>"  # Dream's name
ALPHA = 2  # of LoRA, times the rank


@dataclasses.dataclass(frozen=True)
class Base:
    """What is known of a causal LM before its weights are read."""

    folder: pathlib.Path
    config: ModelConfig
    tokenizer: Any  # with the mask token, and a BOS where the logits are shifted
    known: int  # tokens that it had before


def read_base(model: str, wanted: str, texts: Sequence[str], logit_shift: bool) -> Base:
    """Returns the causal LM of a folder or hub id, its tokenizer with a mask token that none of the texts spells.

    Raises ValueError naming the folder: it holds no causal LM, or has no tokenizer.json.
    """
    folder = huggingface.locate(model)
    architectures = huggingface.read_fields(folder).get("architectures") or []
    config = huggingface.read_config(folder)
    if config.causal and architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise ValueError(f"{folder}: config.json has architectures={architectures!r:.80}; allowed: a causal LM (...ForCausalLM)")
    try:
        dream.adapted(config, 0, logit_shift, 0)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    tokenizer = huggingface.load_tokenizer(folder, config.model_type)
    if tokenizer is None or not tokenizer.is_fast:
        raise ValueError(f"{folder} has no tokenizer.json; one is needed")
    known = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": mask_token(tokenizer, wanted, texts)})
    if logit_shift and tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token or tokenizer.pad_token  # the first token's prediction stands before it; Dream's choice
    return Base(folder, config, tokenizer, known)


def mask_token(tokenizer: Any, wanted: str, texts: Sequence[str]) -> str:
    """Returns the name of a token that nothing uses: the wanted one, the tokenizer's own mask, a special one without a role, or a new one.

    A token is used when it has a role (BOS, EOS, ...), stands in the chat template or is spelled in a text. Raises ValueError when the
    wanted one is.
    """
    own, template = tokenizer.mask_token, f"{tokenizer.chat_template or ''} {around_turns(tokenizer)}"  # it may put names together
    roles = {name for name in tokenizer.all_special_tokens if name != own}

    def use(name: str) -> str:
        if name in roles:
            return "it is a special token with a role"
        if name in template:
            return "the chat template has it"
        return "the pairs or the separator spell it" if any(name in text for text in texts) else ""

    if wanted:
        if found := use(wanted):
            raise ValueError(f"--mask_token={wanted} is used: {found}; allowed: a token that nothing uses, or a new name")
        return wanted
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    candidates = [own or NEW_MASK, *special, *(f"<|mask_{number}|>" for number in range(100))]
    if not own:
        candidates = [*(name for name in special if "mask" in name.lower()), *special, *(c for c in candidates if c not in special)]
    return next(name for name in candidates if not use(name))


def grown(params: Params, config: ModelConfig, known: int) -> Params:
    """Returns the weights with as many rows of the vocabulary as the config has; the mask token's and the new ones are the known's mean."""

    def grow(rows_VxD: jax.Array) -> jax.Array:
        mean_D = jnp.mean(rows_VxD[:known].astype(jnp.float32), axis=0).astype(rows_VxD.dtype)
        more = jnp.broadcast_to(mean_D[None], (config.vocab_size - rows_VxD.shape[0], config.width))
        return jnp.concatenate([rows_VxD, more]).at[config.mask_token].set(mean_D)

    params = {**params, "embedding": grow(params["embedding"])}
    return params if config.tied_head else {**params, "head": grow(params["head"].T).T}


def trainable(params: Params, config: ModelConfig, rank: int, key: jax.Array) -> tuple[Any, Any, Callable[[Any, Any], Params]]:
    """Returns what is trained, what is not, and how the model's weights are made of both.

    rank 0: all weights. Else LoRA factors of all linear layers, and the embedding of the mask token, which no layer has seen before.
    """
    if not rank:
        return params, None, lambda trained, frozen: trained

    def join(trained: Any, frozen: Params) -> Params:
        merged = lora.merge(frozen, trained["lora"])
        return {**merged, "embedding": merged["embedding"].at[config.mask_token].set(trained["mask_D"])}

    trained = {"lora": lora.initialize(key, config, rank, ALPHA * rank), "mask_D": params["embedding"][config.mask_token]}
    return trained, params, join


def described(options: dict[str, Any], settings: learning.Learning) -> dict[str, Any]:
    """Returns what a sampler depends on; how often it is measured is no matter."""
    return {name: value for name, value in (options | dataclasses.asdict(settings)).items() if name != "validate_every"}


def adapt(
    base: Base,
    rows: layout.Rows,
    settings: learning.Learning,
    options: dict[str, Any],
    report: Callable[[str], None],
    folder: epath.Path | None = None,
    save_every: int = 100,
    apart: layout.Rows | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Returns the sampler that a causal LM becomes on these rows, and its bounds on held-out ones (nats per token).

    options: logit_shift, rank, dtype, seed, and anything else that a saved state must have been made with. folder: see `pretrain.train`.
    """
    seed, length = options["seed"], int(rows.tokens_BxT.shape[1])
    config = dream.adapted(base.config, base.tokenizer.mask_token_id, options["logit_shift"], length)
    config = dataclasses.replace(config, compute_dtype=options["dtype"])
    params = grown(huggingface.load(str(base.folder)).params, config, base.known)
    trained, frozen, join = trainable(params, config, options["rank"], jax.random.key(seed))
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    report(f"sampler: {len(rows.tokens_BxT)} pairs, mask token {base.tokenizer.mask_token!r}, {count / 1e6:.3g} M weights are trained")
    saving = None if folder is None else Saving(folder / "state", save_every, described(options, settings))
    key = jax.random.key(seed + 1)
    trained, bounds = learning.learn(trained, config, rows, settings, key, seed, report, saving, folder, frozen, join, apart)
    return Model(join(trained, frozen), config, base.tokenizer), bounds


def pack(base: Base, pool: pool_lib.Pool, pairs: Sequence[tuple[str, str]], file: str) -> tuple[layout.Rows, int]:
    """Returns the rows of the pairs whose prompts are not too long, and how many are; ValueError where none or a mask token is left."""
    around = layout.template(base.tokenizer, pool.separator, pool.begin)
    rows, longer = learning.pair_rows(base.tokenizer, around, pairs, pool.prompt_tokens[1], pool.response_tokens)
    if not len(rows.tokens_BxT):
        raise ValueError(f"{file}: all {longer} prompts have more than --longest_prompt={pool.prompt_tokens[1]} tokens, or none at all")
    if (rows.tokens_BxT == base.tokenizer.mask_token_id).any():
        raise ValueError(f"{file}: --mask_token={base.tokenizer.mask_token} is a token of the pairs or their template; choose another")
    return rows, longer


def define_flags(into: flags.FlagValues = flags.FLAGS) -> None:
    """The command line's options."""
    flags.DEFINE_string("model", None, "folder or hub id of a causal LM", required=True, flag_values=into)
    flags.DEFINE_string("pairs", None, "file of `prompt` and `response`, or chats as config.data.chats", required=True, flag_values=into)
    integers = (("steps", 1000, "training steps"), ("batch_size", 16, "pairs per step"))
    making.define_flags(into, integers, learning_rate=2e-4, validate_every=50)
    about_chunk = "positions that the head sees at a time, of every row; 0: all"
    about_anneal = "steps over which the attention mask goes from causal to full, as DiffuLLaMA's; 0: full at once"
    for name, meaning in (("rank", "of LoRA on all linear layers, merged at the end; 0: all weights"), ("anneal_steps", about_anneal),
                          ("chunk", about_chunk)):  # fmt: skip
        flags.DEFINE_integer(name, 0, meaning, 0, LARGEST_INTEGER, flag_values=into)
    flags.DEFINE_bool("logit_shift", True, "logits predict the token after their position, as the causal LM's do", flag_values=into)
    about_mask = "a token that nothing uses, or a new one; left out: a special token without a role, else a new one"
    flags.DEFINE_string("mask_token", "", about_mask, flag_values=into)
    about_share = "share of the pairs that is held out, 256 of them at most"
    flags.DEFINE_float("validation", 0.02, about_share, lower_bound=1e-6, upper_bound=0.2, flag_values=into)
    about_pairs = "as --pairs: what the bounds and the prompts that are shown are of, 256 pairs at most; then all of --pairs is trained on"
    flags.DEFINE_string("validation_pairs", "", about_pairs, flag_values=into)
    flags.DEFINE_enum("dtype", "float32", list(huggingface.DTYPES), "of matrix products; the weights are float32", flag_values=into)


def make(values: flags.FlagValues, report: Callable[[str], None]) -> None:
    """Adapts and writes the model that the options name, or does what is left of it, and shows prompts of it."""
    started = time.monotonic()
    pairs, pool = first_exchanges(load_chats(values.pairs)), making.pool(values)
    unseen = first_exchanges(load_chats(values.validation_pairs))[: learning.MOST_HELD_OUT] if values.validation_pairs else []
    if unseen:
        kept, shown = pairs, list(dict.fromkeys(response for _, response in unseen))[: values.shown]
    else:
        kept, shown = making.set_apart(pairs, values.shown, values.seed, values.pairs)
    texts = [*(text for pair in pairs + unseen for text in pair), values.separator]
    base = read_base(values.model, values.mask_token, texts, values.logit_shift)
    rows, longer = pack(base, pool, kept, values.pairs)
    if longer:
        report(f"sampler: {longer} pairs left out, whose prompts have more than {values.longest_prompt} tokens or none")
    apart = pack(base, pool, unseen, values.validation_pairs)[0] if unseen else None
    held_out = max(1, min(learning.MOST_HELD_OUT, round(values.validation * len(rows.tokens_BxT))))
    settings = learning.Learning(
        values.steps, values.batch_size, values.learning_rate, values.prompt_only, held_out=held_out, chunk=values.chunk,
        anneal_steps=values.anneal_steps, validate_every=values.validate_every,
    )  # fmt: skip
    options = {name: values[name].value for name in (*making.LAYOUT, "shown", "seed", "logit_shift", "rank", "dtype", "mask_token")}
    options |= {"model": huggingface.identity(values.model), "pairs": f"{zlib.crc32(json.dumps(pairs).encode()):08x}"}
    options |= {"validation_pairs": f"{zlib.crc32(json.dumps(unseen).encode()):08x}"} if unseen else {}
    output = epath.Path(files.absolute(values.output))
    learning.check(rows, settings, values.seed, apart)
    dream.adapted(base.config, base.tokenizer.mask_token_id, values.logit_shift, rows.tokens_BxT.shape[1])
    arguments = described(options, settings)
    if not making.claim(output / MARKER, arguments):
        model, bounds = adapt(base, rows, settings, options, report, output, values.save_every, apart)
        seconds = round(time.monotonic() - started)
        card = card_of(values.model, values.pairs, len(rows.tokens_BxT), settings, options, bounds, base.tokenizer.mask_token)
        (output / "README.md").write_text(card)
        about = {"arguments": arguments, "source": values.model, "file": values.pairs, "seconds": seconds, "bounds": bounds}
        making.finish(model, output / MARKER, about)
    (output / "state").rmtree(missing_ok=True)
    making.show_all(str(output), pool, shown, values.seed, report)
    took = f"{time.monotonic() - started:.0f} s, {making.peak_memory()}"
    report(f"{values.output}: done in {took}; use it as --config.sampler.model={values.output}")


def card_of(
    model: str, pairs: str, count: int, settings: learning.Learning, options: dict[str, Any], bounds: dict[str, Any], mask: str
) -> str:
    """Returns the text of a model card: what the sampler was made from, and how."""
    what = f"LoRA of rank {options['rank']}, merged" if options["rank"] else "all weights"
    names = [pathlib.PurePath(name).name or name for name in (model, pairs)]
    before, after = (bounds[when]["prompt_given_response"] for when in ("before", "after"))
    return (
        "---\nlibrary_name: dat_jax\n---\n\n# A masked-diffusion sampler\n\n"
        f"Made from `{names[0]}` on {count} pairs of `{names[1]}` by `python -m dat_jax.diffusion.adapt`: {settings.steps} updates of "
        f"{settings.batch_size} rows, {what}.\nMask token `{mask}`, logits {'shifted by one' if options['logit_shift'] else 'not shifted'}."
        f"\nBound on held-out prompts given responses: {before:.3f} before, {after:.3f} after, in nats per token.\n"
        "The licence and the limits of what it was made from hold for it too.\n"
    )


def main(argv: list[str]) -> int:
    """Adapts the model, writes it, reads it back and shows prompts of it; returns the exit status."""
    return making.run(make, argv)


if __name__ == "__main__":
    define_flags()
    app.run(signals.ended(main))
