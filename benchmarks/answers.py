"""Answers per second of our decoder against transformers' `generate`, on the same weights and prompts, greedy, on one core.

    python benchmarks/answers.py --model=FOLDER [--repeats 3] [--new-tokens 48] [--threads 1]

FOLDER is a causal Hugging Face model with a chat template, for example SmolLM2-135M-Instruct. Both sides get 32 prompts as texts and
give 32 texts back: chat template, tokenizer, one batch of 32 in float32, at most --new-tokens, the same ends of an answer, decoding.
They take turns in one process, which is bound to --threads cores before either library starts threads of its own. Loading and the first
round, which compiles, are not counted. Printed: how many answers are equal, answers per second, the medians of the per-pair ratios of wall
and of processor time (which means something on a busy machine, too), and where our time goes. Needs torch (the test extra).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import torch
import transformers

import dat_jax.models
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data import conversations
from dat_jax.models import decoding, transformer

THINGS = ("a door", "an old bicycle", "a tent after rain", "a garden in spring", "bread with little salt", "a violin", "a fish", "a map")
FORMS = ("How do I look after {}?", "Write three sentences about {}.", "What should a child know about {}?", "What can go wrong with {}?")
PROMPTS = [form.format(thing) for form in FORMS for thing in THINGS]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Peer:
    """transformers' own generate, with the cache that it uses by default."""

    def __init__(self, folder: str, new_tokens: int, stop: tuple[int, ...]) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.how = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": list(stop)}

    @torch.inference_mode()
    def answer(self) -> list[str]:
        """The answers to all prompts, in one batch."""
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        rows = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        found = self.model.generate(**rows, **self.how, pad_token_id=self.tokenizer.pad_token_id)[:, rows["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The median of the processor's seconds for a call, which must have been compiled."""
    laps = []
    for _ in range(repeats + 1):
        started = time.process_time()
        jax.block_until_ready(function())
        laps.append(time.process_time() - started)
    return statistics.median(laps[1:])


def parts(victim: Victim, new_tokens: int, prompt_length: int) -> dict[str, float]:
    """Seconds of a processor for the prompt's pass, a token's pass, and the head in it."""
    params, config, B = victim.model.params, victim.model.config, len(PROMPTS)
    valid_BxP, e_BxPxD = jnp.ones((B, prompt_length), bool), jnp.zeros((B, prompt_length, config.width))
    valid_BxS = jnp.ones((B, prompt_length + new_tokens), bool)
    prefill = jax.jit(lambda params: decoding.prefill(params, config, e_BxPxD, valid_BxP, new_tokens))
    h_BxD, cache = prefill(params)
    head = jax.jit(lambda params, h_BxD: jnp.argmax(transformer.head(params, config, h_BxD), axis=-1))

    @jax.jit
    def passes(params: Any, cache: Any) -> jax.Array:
        """Ten tokens without a head."""

        def one(n: jax.Array, state: Any) -> Any:
            e_Bx1xD, cache = state
            h_BxD, cache = decoding.step(params, config, e_Bx1xD, jnp.full((B,), prompt_length + n), valid_BxS, prompt_length + n, cache)
            return h_BxD[:, None], cache

        return jax.lax.fori_loop(0, 10, one, (e_BxPxD[:, :1], cache))[0]

    return {
        "prompt": seconds(lambda: prefill(params)[0]),
        "layers of a token": seconds(lambda: passes(params, cache)) / 10,
        "head of a token": seconds(lambda: head(params, h_BxD)),
    }


def main() -> None:
    """Lets both sides take turns and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal Hugging Face model")
    for name, default in (("repeats", 3), ("new-tokens", 48), ("threads", 1), ("prompt-length", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])  # before jax and torch start threads of their own
    torch.set_num_threads(flags.threads)
    how = Decoding(flags.prompt_length, 1, flags.new_tokens, len(PROMPTS), 0.0, "user", None)
    victim = Victim(dat_jax.models.load(flags.model, dtype="float32"), how, 0)
    peer = Peer(flags.model, flags.new_tokens, conversations.stop_tokens(victim.model.tokenizer))
    attempts = [Attempt(str(number), prompt, "") for number, prompt in enumerate(PROMPTS)]
    sides: dict[str, Callable[[], list[str]]] = {"transformers": peer.answer, "ours": lambda: victim.answer(attempts)}
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    answers: dict[str, list[str]] = {}
    for repeat in range(-1, flags.repeats):  # the first round compiles
        for name, side in sides.items():
            started = {clock: read() for clock, read in CLOCKS.items()}
            answers[name] = side()
            if repeat >= 0:
                laps[name].append({clock: read() - started[clock] for clock, read in CLOCKS.items()})
    equal = sum(a == b for a, b in zip(answers["transformers"], answers["ours"], strict=True))
    rates = {name: round(len(PROMPTS) / statistics.median(lap["wall"] for lap in found), 2) for name, found in laps.items()}
    spent = {name: round(statistics.median(lap["processor"] for lap in found), 2) for name, found in laps.items()}
    pairs = list(zip(laps["transformers"], laps["ours"], strict=True))
    ratios = {clock: round(statistics.median(a[clock] / b[clock] for a, b in pairs), 2) for clock in CLOCKS}
    print(
        f"{len(PROMPTS)} prompts in one batch, at most {flags.new_tokens} new tokens; {equal} of {len(PROMPTS)} answers are equal",
        flush=True,
    )
    print(f"answers per second: {rates}; seconds of a processor: {spent}; transformers' time over ours, median ratio: {ratios}", flush=True)
    found = parts(victim, flags.new_tokens, flags.prompt_length)
    print("ours, seconds of a processor:", {name: round(value, 4) for name, value in found.items()})


if __name__ == "__main__":
    main()
