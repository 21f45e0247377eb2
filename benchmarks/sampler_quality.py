"""What each way of sampling prompts costs and gives, on the embedded world, where a prompt's quality can be checked exactly.

    python benchmarks/sampler_quality.py --world=runs/quickstart/seed_0/world [--samples 96] [--behaviors 12] [--dtype nf4]

Per way: forward passes; the share of prompts that are grammatical, and that also ask for what the response answers (faithful); how many
forms occur; total variation (TV) of the forms and of single words from the exact sampler's, beside what two exact runs of that size differ
by; distinct-2; mean similarity of a behavior's prompts; the sampler's own bound on log p(prompt | response) per token (nats). Below: the
variance of the likelihood estimate by scheme at equal cost.
"""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax.data.behaviors import Behavior, load_behaviors
from dat_jax.data.plain_text import encode_text
from dat_jax.data.prompts import PromptRecord
from dat_jax.data.variety import distinct
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import pack, prompt_block, template
from dat_jax.diffusion.likelihood import SCHEMES, bound_draws
from dat_jax.diffusion.pool import Pool, draw, forbidden_tokens
from dat_jax.diffusion.sampler import row_keys
from dat_jax.diffusion.selection import mean_similarity
from dat_jax.models import Model, load
from dat_jax.models.huggingface import PRECISIONS
from dat_jax.world import grammar

EXACT = Pool(prompt_tokens=(7, 11), response_tokens=10, steps=11, likelihood_samples=16, keep=1)
WAYS = {
    "exact": {},
    "exact, other seed": {},
    "6 steps": {"steps": 6},
    "3 steps": {"steps": 3},
    "1 step": {"steps": 1},
    "low confidence, temperature 1": {"remasking": "low_confidence"},
    "condition re-masked, up to a half": {"condition_remasking": 0.5},
    "entropy <= 0.1, random order": {"acceptance": "entropy", "bound": 0.1},
    "entropy <= 1, random order": {"acceptance": "entropy", "bound": 1.0},
    "entropy <= 1, surest first": {"acceptance": "entropy", "bound": 1.0, "remasking": "entropy"},
    "probability >= 0.9": {"acceptance": "threshold", "bound": 0.9, "remasking": "low_confidence"},
    "response cached, 4 passes": {"acceptance": "count", "bound": 1.0, "cache_refresh": 4},
    "response cached throughout": {"acceptance": "count", "bound": 1.0, "cache_refresh": 99},
}


def variation(left: Sequence[str], right: Sequence[str]) -> float:
    """Total variation between the frequencies of two samples."""
    a, b = Counter(left), Counter(right)
    return sum(abs(a[x] / len(left) - b[x] / len(right)) for x in {*a, *b}) / 2


def sample(way: dict, sampler: Model, behaviors: Sequence[Behavior], samples: int, seed: int) -> tuple[list[PromptRecord], float, float]:
    """All records of the behaviors, denoising passes per batch and seconds without compilation."""
    pool = dataclasses.replace(EXACT, samples=samples, batch_size=samples, **way)
    pool.validate()
    around = template(sampler.tokenizer, pool.separator, pool.begin)
    forbidden = forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask_id(sampler.config))
    records: list[PromptRecord] = []
    passes, seconds = [], []
    for behavior in behaviors:
        started = time.perf_counter()
        found, cost = draw(pool, sampler, [behavior], around, forbidden, seed, 0)
        seconds.append(time.perf_counter() - started)
        passes.append(cost["forward_passes"] - pool.likelihood_samples)
        records += found
    return records, float(np.mean(passes)), float(np.sum(seconds[1:]))


def likelihood_variance(sampler: Model, records: Sequence[PromptRecord], draws: int, repetitions: int) -> dict[str, float]:
    """Mean variance over prompts of the `draws`-pass estimate of log p(prompt | response), by scheme (nats squared)."""
    around = template(sampler.tokenizer, EXACT.separator, EXACT.begin)
    prompts, responses = (
        [encode_text(sampler.tokenizer, text) for text in texts] for texts in zip(*((r.prompt, r.response) for r in records))
    )
    rows = pack(prompts, responses, around, prompt_block(around, EXACT.prompt_tokens[1]), EXACT.response_tokens)
    inputs = [jnp.repeat(jnp.asarray(x), repetitions, axis=0) for x in (rows.tokens_BxT, rows.prompt_mask_BxT, rows.valid_BxT)]
    keys = row_keys(jax.random.key(1), jnp.arange(len(records) * repetitions))
    result = {}
    for scheme in SCHEMES:
        found = bound_draws(sampler.params, sampler.config, *inputs, keys, draws, scheme=scheme, span=EXACT.prompt_tokens[1])
        result[scheme] = float(np.asarray(found).mean(axis=0).reshape(len(records), repetitions).var(axis=1, ddof=1).mean())
    return result


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, help="folder of a built world")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--behaviors", type=int, default=12)
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="precision of the sampler's weights")
    flags = parser.parse_args()
    sampler = load(f"{flags.world}/sampler", dtype=flags.dtype)
    behaviors = load_behaviors(f"{flags.world}/behaviors_train.csv", f"{flags.world}/targets.json")[: flags.behaviors]
    columns = {
        "passes": 7,
        "s": 6,
        "gramm.": 8,
        "faithful": 9,
        "forms": 6,
        "TV forms": 9,
        "TV words": 9,
        "dist-2": 7,
        "simil.": 7,
        "log p": 8,
    }
    print(f"{'':34s}" + "".join(f"{title:>{width}s}" for title, width in columns.items()))
    first: tuple[list[str], list[str]] | None = None
    for name, way in WAYS.items():
        records, passes, seconds = sample(way, sampler, behaviors, flags.samples, 1 if "seed" in name else 0)
        pairs = [(record.behavior_id, record.prompt) for record in records]
        measured = grammar.coverage(pairs)
        parsed = [grammar.parse(prompt) for _, prompt in pairs]
        forms = [found[2] if found else "ungrammatical" for found in parsed]
        words = [word for _, prompt in pairs for word in grammar.words(prompt)]
        first = first or (forms, words)
        of = {behavior.id: [prompt for id_, prompt in pairs if id_ == behavior.id] for behavior in behaviors}
        print(
            f"{name:34s}{passes:7.1f}{seconds:6.1f}{measured['grammatical']:8.3f}{measured['faithful']:9.3f}"
            f"{sum(share > 0 for key, share in measured.items() if key.startswith('form:')):6d}"
            f"{variation(forms, first[0]):9.3f}{variation(words, first[1]):9.3f}"
            f"{np.mean([distinct(texts, 2) for texts in of.values()]):7.2f}"
            f"{np.mean([mean_similarity(texts) for texts in of.values()]):7.2f}"
            f"{np.mean([(record.log_likelihood or 0.0) / record.tokens for record in records]):8.3f}",
            flush=True,
        )
        if name == "exact":
            exact = records
    print("\nvariance of an 8-pass likelihood estimate (nats squared), mean over 32 sampled prompts")
    for scheme, variance in likelihood_variance(sampler, exact[:32], 8, 64).items():
        print(f"{scheme:34s}{variance:7.3f}")


if __name__ == "__main__":
    main()
