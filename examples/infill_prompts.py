"""Samples prompts that could have led to a given response, and prints them ranked by their likelihood.

    python examples/infill_prompts.py --sampler=GSAI-ML/LLaDA-8B-Base --response="Sure, here is how to paint a fence: take a brush"
    python examples/infill_prompts.py --sampler=runs/quickstart/seed_0/world/sampler --response="sure , take the brush and some wood ."

`--sampler` is a masked-diffusion LM (LLaDA, Dream, or one made by `python -m dat_jax.diffusion.pretrain`): a hub id or a folder. Each line
is the bound on log p(prompt | response) per token in nats, the number of tokens and the prompt. With steps >= the longest prompt, random
order and temperature 1 (the defaults) these are draws from the model's own distribution.
"""

import dataclasses
import os
import sys

from dat_jax import platform

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.update(platform.environment())

from absl import app, flags

from dat_jax.data.behaviors import Behavior
from dat_jax.data.variety import distinct
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import template
from dat_jax.diffusion.pool import Pool, draw, forbidden_tokens
from dat_jax.diffusion.selection import mean_similarity, unique
from dat_jax.models import load


def main(argv: list[str]) -> int:
    """Samples and prints; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --response=TEXT", 2)
    try:
        show(flags.FLAGS)
    except ValueError as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    return 0


def show(values: flags.FlagValues) -> None:
    """Prints the different prompts, likely ones first, and what they cost."""
    pool = Pool(
        samples=values.samples,
        keep=1,
        prompt_tokens=(values.shortest, values.longest),
        response_tokens=values.response_tokens,
        steps=values.steps,
        remasking=values.remasking,
        temperature=values.temperature,
        condition_remasking=values.condition_remasking,
        separator=values.separator,
        batch_size=values.batch_size,
        selection="likelihood",
    )
    pool.validate()
    sampler = load(values.sampler, dtype=values.dtype)
    around = template(sampler.tokenizer, pool.separator, pool.begin)
    forbidden = forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask_id(sampler.config))
    records, cost = draw(pool, sampler, [Behavior("response", "", (values.response,), ())], around, forbidden, values.seed, 0)
    records = [records[index] for index in unique([record.prompt for record in records])]
    for record in sorted(records, key=lambda record: -(record.log_likelihood or 0.0) / record.tokens):
        print(f"{(record.log_likelihood or 0.0) / record.tokens:8.3f} {record.tokens:4d}  {record.prompt!r}")
    texts = [record.prompt for record in records]
    print(
        f"{len(texts)} different prompts of {pool.samples}; distinct-2 {distinct(texts, 2):.2f}, mean similarity "
        f"{mean_similarity(texts):.2f}; {cost['forward_passes']:.0f} forward passes, {cost['flops']:.2e} FLOPs, "
        f"{cost['seconds']:.1f} s with compilation"
    )


if __name__ == "__main__":
    defaults = dataclasses.asdict(Pool())
    flags.DEFINE_string("sampler", None, "masked-diffusion LM: hub id or folder", required=True)
    flags.DEFINE_string("response", None, "the response that the prompts are to lead to", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the weights")
    flags.DEFINE_integer("samples", 16, "prompts", lower_bound=1)
    flags.DEFINE_integer("shortest", defaults["prompt_tokens"][0], "prompt tokens", lower_bound=1)
    flags.DEFINE_integer("longest", defaults["prompt_tokens"][1], "prompt tokens", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0)
    for name in ("response_tokens", "steps", "batch_size"):
        flags.DEFINE_integer(name, defaults[name], f"as config.sampler.{name}", lower_bound=1)
    for name in ("temperature", "condition_remasking"):
        flags.DEFINE_float(name, defaults[name], f"as config.sampler.{name}", lower_bound=0.0)
    for name in ("remasking", "separator"):
        flags.DEFINE_string(name, defaults[name], f"as config.sampler.{name}")
    app.run(main)
