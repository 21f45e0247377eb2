"""The example script as a user calls it: prompts for a response, ranked, from a sampler in a folder."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dat_jax.models import huggingface

ROOT = pathlib.Path(__file__).parents[2]
LINE = re.compile(r" *(-?\d+\.\d{3}) +(\d+)  '(.*)'")


def run(*arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / "infill_prompts.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.slow
def test_prompts_are_printed_once_each_and_likely_ones_first(small_sampler, tmp_path):
    huggingface.save(dataclasses.replace(small_sampler, source=""), str(tmp_path))
    sizes = ("--samples=12", "--batch_size=8", "--shortest=1", "--longest=3", "--response_tokens=4", "--steps=3")
    done = run(f"--sampler={tmp_path}", "--response=turn it now", "--separator=answer:", *sizes)
    assert done.returncode == 0, done.stderr
    *lines, summary = done.stdout.splitlines()
    found = [LINE.fullmatch(line).groups() for line in lines]
    scores, prompts = [float(score) for score, *_ in found], [prompt for *_, prompt in found]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1] and all(score < 0 for score in scores)
    assert all(len(prompt.split()) == int(tokens) and 1 <= int(tokens) <= 3 for _, tokens, prompt in found)
    words = set(small_sampler.tokenizer.get_vocab()) - set(small_sampler.tokenizer.all_special_tokens)
    assert len(set(prompts)) == len(prompts) > 3 and {word for prompt in prompts for word in prompt.split()} <= words
    # Two batches of at most three passes, each scored with 16 draws.
    passes = int(re.fullmatch(rf"{len(prompts)} different prompts of 12; .* (\d+) forward passes, .*", summary)[1])
    assert 2 * (1 + 16) <= passes <= 2 * (3 + 16)

    wrong = run(f"--sampler={tmp_path}", "--response=turn it", "--shortest=4", "--longest=3")
    assert wrong.returncode == 2 and "dat_jax: config.sampler.prompt_tokens is (4, 3); allowed: two integers" in wrong.stderr
