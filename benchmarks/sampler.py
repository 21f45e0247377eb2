"""Speed of prompt infilling, ours against a PyTorch loop on the same random weights, and what each fast mode costs in quality.

    python benchmarks/sampler.py [--repeats 3] [--threads 2] [--layers 8 --width 512 --vocabulary 32000]

Every way of sampling fills 32 masked prompt positions in front of 32 given response tokens, for 4 rows. The ways take turns in one process
and the table shows medians of wall and of processor seconds (the latter mean something on a busy machine too), and the gain over PyTorch at
the same temperature. The PyTorch loop is LLaDA's: logits of the whole canvas, float64 noise exp(logits) / (-log u)^temperature over it, a
softmax, top-k row by row. Quality: the bound on log p(prompt | response) per token of the drawn prompts under the same weights (nats; that
of "exact, temperature 1" is the model's own, one below it is a loss), the share of different tokens, and at temperature 0 the share of
tokens equal to PyTorch's. Random weights have almost no dependence between tokens: see sampler_quality.py for a trained sampler.

Below: 24 prompts of 8 to 32 tokens, 4 at a time, one token per pass: in batches that wait for their longest row, and with the slots of
finished rows refilled (what a pool does). Both give the same tokens.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dat_jax.diffusion.likelihood import log_likelihood
from dat_jax.diffusion.parallel import FastSettings, infill_fast
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig

ROWS, PROMPT, RESPONSE, STEPS = 4, 32, 32, 32
QUEUED, SHORTEST = 24, 8  # rows of unequal length, and the shortest of them


def random_model(width: int, layers: int, vocabulary: int) -> tuple[dict[str, Any], ModelConfig]:
    """Random weights of the LLaDA kind; the head is scaled so that logits have a standard deviation of 3, as a trained model's."""
    config = ModelConfig(
        vocab_size=vocabulary, width=width, layers=layers, heads=8, mlp_width=3 * width, causal=False, mask_token=vocabulary - 1,
        rope_theta=500000.0, remat=False, model_type="llada",
    )  # fmt: skip
    params = weights.initialize(jax.random.key(0), config, jnp.float32)
    params["head"] = jax.random.normal(jax.random.key(1), (width, vocabulary)) * 3 / width**0.5
    return params, config


class TorchDenoiser(torch.nn.Module):
    """The same network in PyTorch, with its fused attention."""

    def __init__(self, params: dict[str, Any], config: ModelConfig) -> None:
        """Takes over the weights."""
        super().__init__()
        self.config = config
        self.w = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params)
        angles = np.arange(PROMPT + RESPONSE)[:, None] / config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        self.cos, self.sin = (torch.from_numpy(np.concatenate([f(angles)] * 2, axis=-1)).float() for f in (np.cos, np.sin))

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm."""
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, self.config.norm_epsilon)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Half-split rotary embedding."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V)."""
        rows, length = tokens.shape
        x, layers = self.w["embedding"][tokens], self.w["layers"]
        for i in range(self.config.layers):
            h = self.norm(x, layers["attention_norm"][i])
            q, k, v = ((h @ layers[n][i]).view(rows, length, self.config.heads, -1).transpose(1, 2) for n in "qkv")
            values = torch.nn.functional.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
            x = x + values.transpose(1, 2).reshape(rows, length, -1) @ layers["o"][i]
            h = self.norm(x, layers["mlp_norm"][i])
            x = x + (torch.nn.functional.silu(h @ layers["gate"][i]) * (h @ layers["up"][i])) @ layers["down"][i]
        return self.norm(x, self.w["final_norm"]) @ self.w["head"]


@torch.no_grad()
def torch_infill(model: TorchDenoiser, tokens: np.ndarray, masked: np.ndarray, temperature: float, steps: int) -> np.ndarray:
    """LLaDA's low-confidence loop, for masks anywhere."""
    mask_token = model.config.mask_token
    canvas = torch.from_numpy(np.where(masked, mask_token, tokens)).long()
    quota = int(masked.sum(axis=1)[0]) // steps
    for _ in range(steps):
        logits = model(canvas)
        logits[..., mask_token] = -torch.inf
        scores = logits
        if temperature > 0:
            wide = logits.to(torch.float64)
            scores = wide.exp() / (-torch.log(torch.rand_like(wide))) ** temperature
        proposed = scores.argmax(dim=-1)
        confidence = torch.gather(torch.softmax(logits, dim=-1), -1, proposed[..., None])[..., 0]
        confidence = torch.where(canvas == mask_token, confidence, -torch.inf)
        for row in range(len(canvas)):
            best = torch.topk(confidence[row], quota).indices
            canvas[row, best] = proposed[row, best]
    return canvas.numpy()


def ways(
    params: dict[str, Any], config: ModelConfig, tokens: np.ndarray, masked: np.ndarray
) -> dict[str, Callable[[int], tuple[np.ndarray, float]]]:
    """name -> function of a seed that gives the filled rows and the number of forward passes; the first two are PyTorch's."""
    reference = TorchDenoiser(params, config)
    inputs = jnp.asarray(tokens), jnp.asarray(masked), jnp.ones(tokens.shape, bool)
    forbidden = (config.mask_token or 0,)

    def exact(settings: InfillSettings) -> Callable[[int], tuple[np.ndarray, float]]:
        def run(seed: int) -> tuple[np.ndarray, float]:
            done = infill(params, config, *inputs, row_keys(jax.random.key(seed), jnp.arange(ROWS)), settings, PROMPT)
            return np.asarray(done.tokens_BxT), float(done.forwards_B.max())

        return run

    def fast(settings: FastSettings, config: ModelConfig = config) -> Callable[[int], tuple[np.ndarray, float]]:
        def run(seed: int) -> tuple[np.ndarray, float]:
            keys = row_keys(jax.random.key(seed), jnp.arange(ROWS))
            done = infill_fast(params, config, *inputs, keys, settings, PROMPT, (0, PROMPT))
            return np.asarray(done.tokens_BxT), float(done.forwards_B.max())

        return run

    half = dataclasses.replace(config, compute_dtype="bfloat16")
    drawn = InfillSettings(steps=STEPS, forbidden=forbidden)
    cached = FastSettings("count", 4, order="random", refresh=4, forbidden=forbidden)
    return {
        "PyTorch, temperature 0": lambda seed: (torch_infill(reference, tokens, masked, 0.0, STEPS), STEPS),
        "PyTorch, temperature 1": lambda seed: (torch_infill(reference, tokens, masked, 1.0, STEPS), STEPS),
        "exact, temperature 0": exact(dataclasses.replace(drawn, remasking="low_confidence", temperature=0.0)),
        "exact, temperature 1": exact(drawn),
        "8 steps": exact(dataclasses.replace(drawn, steps=8)),
        "1 per pass, response cached 8 passes": fast(dataclasses.replace(cached, bound=1, refresh=8)),
        "4 per pass, response cached 4 passes": fast(cached),
        "the same in bfloat16": fast(cached, half),
    }


def print_refilling(params: dict[str, Any], config: ModelConfig, repeats: int) -> None:
    """Prints passes and seconds of rows of unequal length, in batches and through refilled slots."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(SHORTEST, PROMPT + 1, QUEUED)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size - 1, (QUEUED, PROMPT + RESPONSE)))
    valid = jnp.arange(PROMPT + RESPONSE)[None] >= PROMPT - jnp.asarray(lengths)[:, None]
    masked, keys = valid & (jnp.arange(PROMPT + RESPONSE) < PROMPT)[None], row_keys(jax.random.key(0), jnp.arange(QUEUED))
    longest_first = np.argsort(-lengths, kind="stable")
    ways = {
        "batches in any order": np.split(np.arange(QUEUED), QUEUED // ROWS),
        "batches, longest first": np.split(longest_first, QUEUED // ROWS),
        "refilled, longest first": [longest_first],
    }
    print(f"\n{QUEUED} prompts of {lengths.min()} to {lengths.max()} tokens, {lengths.sum()} in all, {ROWS} at a time")
    for refresh in (1, 4):
        settings = FastSettings("count", 1, order="random", refresh=refresh, forbidden=(config.mask_token or 0,))

        def run(parts: list[np.ndarray], settings: FastSettings = settings) -> tuple[int, int]:
            made = np.zeros(2, int)
            for rows in parts:
                inputs = (tokens[rows], masked[rows], valid[rows], keys[rows])
                done = infill_fast(params, config, *inputs, settings, PROMPT, (0, PROMPT), ROWS)
                made += [int(done.full_passes), int(done.block_passes)]
            return int(made[0]), int(made[1])

        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(-1, repeats):  # the first round compiles
            for name, parts in ways.items():
                started = time.perf_counter()
                run(parts)
                if repeat >= 0:
                    seconds[name].append(time.perf_counter() - started)
        for name, parts in ways.items():
            full, block = run(parts)
            cached = f"response cached {refresh} passes, " if refresh > 1 else ""
            print(f"{cached + name:52s}{full:5d} full and {block:4d} block passes {statistics.median(seconds[name]):8.2f} s")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 3), ("threads", 2), ("layers", 8), ("width", 512), ("vocabulary", 32000), ("draws", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    params, config = random_model(flags.width, flags.layers, flags.vocabulary)
    tokens = np.random.default_rng(0).integers(0, flags.vocabulary - 1, (ROWS, PROMPT + RESPONSE))
    masked = np.broadcast_to(np.arange(PROMPT + RESPONSE) < PROMPT, tokens.shape)
    runs, target = ways(params, config, tokens, masked), jnp.asarray(masked)
    outputs: dict[str, tuple[np.ndarray, float]] = {}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in runs} for clock in clocks}
    for repeat in range(-1, flags.repeats):  # the first round compiles
        for name, run in runs.items():
            if repeat < 0 and "PyTorch" in name:
                continue
            started = {clock: read() for clock, read in clocks.items()}
            outputs[name] = run(max(repeat, 0))
            print(f"round {repeat + 1}: {name} {time.perf_counter() - started['wall']:.1f} s", file=sys.stderr, flush=True)
            for clock, read in clocks.items():
                if repeat >= 0:
                    seconds[clock][name].append(read() - started[clock])
    print(f"{'':40s}{'passes':>7s}{'seconds':>9s}{'gain':>8s}{'cpu s':>8s}{'gain':>8s}{'log p/token':>13s}{'distinct':>10s}{'equal':>7s}")
    for name in runs:
        filled, passes = outputs[name]
        greedy = "temperature 0" in name
        peer = "PyTorch, temperature 0" if greedy else "PyTorch, temperature 1"
        columns = ""
        for times, width in ((seconds["wall"], 9), (seconds["processor"], 8)):
            median, base = statistics.median(times[name]), statistics.median(times[peer])
            columns += f"{median:{width}.2f}{base / median:7.1f}x"
        keys = row_keys(jax.random.key(9), jnp.arange(ROWS))
        bound = log_likelihood(params, config, jnp.asarray(filled), target, jnp.ones_like(target), keys, flags.draws, span=PROMPT)
        distinct = len(np.unique(filled[masked])) / masked.sum()
        equal = f"{np.mean(filled == outputs['PyTorch, temperature 0'][0]):7.3f}" if greedy else ""
        print(f"{name:40s}{passes:7.0f}{columns}{float(bound.mean()) / PROMPT:13.3f}{distinct:10.2f}{equal}")
    print_refilling(params, config, flags.repeats)


if __name__ == "__main__":
    main()
