"""One CAT training step (10 attack steps, away, toward, utility) beside a plain PyTorch step, on the same random Llama weights.

    python benchmarks/cat_step.py [--steps 7] [--rank 64] [--tokens 64] [--peer delta|backward] [--threads 0]

Both sides run in processes of their own that wait for each other, so the machine's state is the same for both: first one step of one,
then one of the other. Printed: the losses of the first step (they must agree), the median of the per-pair ratios of wall and of CPU
time, and each side's peak memory during the steps beyond what it held before them. The peer is transformers' Llama with autograd as
Continuous-AdvTrain runs it: adapters unmerged, head over all positions; in the attack `delta` (the default) asks autograd for the
perturbation's gradient alone, `backward` also accumulates gradients of the adapters, as that reference did until August 2025. On a machine
that is not idle use --threads 1: waiting threads of torch's pool otherwise count against it. Needs torch (the test extra).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
ROWS, ATTACK_STEPS, RADIUS, STEP_SIZE, LEARNING_RATE, CLIP, ALPHA = 4, 10, 0.05, 1e-4, 2e-4, 0.3, 16
WARMUP = 2  # steps that compile and touch memory for the first time
AWAY, TOWARD, UTILITY, AWAY_CUTOFF, TOWARD_CUTOFF = 0.5, 0.5, 1.0, 5.0, 0.5


def batch(tokens: int):
    """Token ids (3, ROWS, tokens) of the away, toward and utility rows; away and toward share the first half, the prompt."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (3, ROWS, tokens))
    ids[1, :, : tokens // 2] = ids[0, :, : tokens // 2]
    return ids


def peer(folder: str, arguments):
    """Return a function that takes one PyTorch step and returns its losses."""
    import torch
    import torch.nn.functional as F
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(False)

    class Adapted(torch.nn.Module):
        def __init__(self, base, a):
            super().__init__()
            self.base, self.a = base, torch.nn.Parameter(a)
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, a.shape[0]))

        def forward(self, x):
            return self.base(x) + ALPHA / self.a.shape[0] * ((x @ self.a.T) @ self.b.T)

    for block in [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]:
        for name, base in [(name, child) for name, child in block.named_children() if isinstance(child, torch.nn.Linear)]:
            setattr(block, name, Adapted(base, (2 * torch.rand(arguments.rank, base.in_features) - 1) / math.sqrt(base.in_features)))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=1e-3)
    ids, half = torch.tensor(batch(arguments.tokens)), arguments.tokens // 2
    matrix = model.get_input_embeddings().weight
    radius = RADIUS * matrix.norm(dim=-1).mean()

    def response_nll(embeddings, ids):
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        losses = F.cross_entropy(logits[:, half - 1 : -1].flatten(0, 1), ids[:, half:].flatten(), reduction="none")
        return losses.view(ids.shape[0], -1).mean(1)

    def step():
        clean = matrix[ids[0]]
        delta = torch.zeros(ROWS, half, clean.shape[-1], requires_grad=True)
        for _ in range(ATTACK_STEPS):
            loss = response_nll(torch.cat([clean[:, :half] + delta, clean[:, half:]], 1), ids[0]).sum()
            if arguments.peer == "backward":
                loss.backward()
                gradient, delta.grad = delta.grad, None
                optimizer.zero_grad()
            else:
                (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                moved = delta - STEP_SIZE * gradient.sign()
                moved *= (radius / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            delta = moved.requires_grad_()
        rows = matrix[ids.flatten(0, 1)].clone()
        rows[:ROWS, :half] += delta.detach()
        rows[ROWS : 2 * ROWS, :half] += delta.detach()
        away, toward, utility = response_nll(rows, ids.flatten(0, 1)).view(3, ROWS)
        losses = [
            torch.where(away <= AWAY_CUTOFF, -away, -AWAY_CUTOFF - 0.001 * away).mean(),
            torch.where(toward >= TOWARD_CUTOFF, toward, TOWARD_CUTOFF + 0.001 * toward).mean(),
            utility.mean(),
        ]
        (AWAY * losses[0] + TOWARD * losses[1] + UTILITY * losses[2]).backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return [loss.item() for loss in losses]

    return step


def ours(folder: str, arguments):
    """Return a function that takes one step of dat_jax and returns its losses."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers imports it where it is installed; dat_jax runs without
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    import jax
    import numpy as np
    import optax

    from dat_jax import models
    from dat_jax.checkpoints import TrainState
    from dat_jax.data.conversations import Conversations
    from dat_jax.data.pipeline import Batch
    from dat_jax.methods import cat
    from dat_jax.models import lora
    from dat_jax.training.loop import compiled_step
    from dat_jax.training.losses import Objective
    from dat_jax.training.perturbation import Perturbation
    from dat_jax.training.step import StepConfig

    model = models.load(folder)
    half = arguments.tokens // 2
    response = np.broadcast_to(np.arange(arguments.tokens) >= half, (ROWS, arguments.tokens))
    rows = [Conversations(ids.astype(np.int32), ~response, response, np.ones_like(response)) for ids in batch(arguments.tokens)]
    config = StepConfig(
        model=dataclasses.replace(model.config, keep_products=True),
        inner=cat.inner,
        loss=cat.loss,
        settings=cat.Settings(
            perturbation=Perturbation(steps=ATTACK_STEPS, radius=RADIUS, step_size=STEP_SIZE, absolute=True),
            objective=Objective(AWAY, TOWARD, UTILITY, AWAY_CUTOFF, TOWARD_CUTOFF),
        ),
        prompt_length=half,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=1e-3))
    factors = lora.initialize(jax.random.key(0), model.config, arguments.rank, ALPHA)
    state = TrainState(step=jax.numpy.zeros((), jax.numpy.int32), trainable=factors, optimizer=optimizer.init(factors))
    state = jax.device_put(state, jax.devices()[0])
    compiled = compiled_step(state)
    data, key = jax.device_put(Batch(*rows)), jax.random.key(1)

    def step():
        nonlocal state
        state, metrics = compiled(state, model.params, data, key, config, optimizer)
        return [float(metrics[name]) for name in ("loss/away", "loss/toward", "loss/utility")]

    return step


def resident(field: str) -> int:
    """Return a line of /proc/self/status in bytes, such as VmRSS, or VmHWM for its highest value since the last reset."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


def work(arguments) -> None:
    """Answer each line on stdin with one step: wall and CPU seconds, losses, memory before and highest since the first."""
    step = {"jax": ours, "torch": peer}[arguments.worker](arguments.folder, arguments)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    print(json.dumps({"ready": True}), flush=True)
    for number, _ in enumerate(sys.stdin):
        if number == WARMUP:  # the peak is that of a step, not of loading or compiling
            ctypes.CDLL(None).malloc_trim(0)
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        losses = step()
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
        report = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds, "losses": losses, "before": before, "peak": resident("VmHWM")}
        print(json.dumps(report), flush=True)


def main() -> None:
    """Run both sides in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peer", choices=("delta", "backward"), default="delta")
    parser.add_argument("--threads", type=int, default=0, choices=(0, 1), help="1: one thread each; 0: as they choose")
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        make = "import json, sys, torch, transformers; torch.manual_seed(0); c = transformers.LlamaConfig(**json.loads(sys.argv[2]))"
        make += "; transformers.LlamaForCausalLM(c).save_pretrained(sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, folder, json.dumps(SIZES)], check=True, stderr=subprocess.DEVNULL)
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--worker"]
        one = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if arguments.threads == 1 else {}
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **one}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        sides = {name: subprocess.Popen([*command, name], **pipes) for name in ("torch", "jax")}
        for side in sides.values():
            side.stdout.readline()
        reports: dict[str, list[dict]] = {name: [] for name in sides}
        for _ in range(arguments.steps + WARMUP):
            for name, side in sides.items():
                side.stdin.write("\n")
                side.stdin.flush()
                reports[name].append(json.loads(side.stdout.readline()))
        for side in sides.values():
            side.stdin.close()
            side.wait()
    show(reports)


def show(reports: dict[str, list[dict]]) -> None:
    """Print losses, times, memory and the ratios of torch to jax."""
    for number in (0, -1):
        losses = {name: [round(x, 5) for x in side[number]["losses"]] for name, side in reports.items()}
        print(f"losses (away, toward, utility) of the {'last' if number else 'first'} step:", losses)
    measured = {name: side[WARMUP:] for name, side in reports.items()}
    for kind in ("wall", "cpu"):
        times = {name: [report[kind] for report in side] for name, side in measured.items()}
        ratio = statistics.median(a / b for a, b in zip(times["torch"], times["jax"], strict=True))
        medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
        best = {name: round(min(values), 3) for name, values in times.items()}
        print(f"{kind} seconds per step: median {medians}, best {best}, median ratio {ratio:.2f}")
    peaks = {name: max(report["peak"] for report in side) for name, side in measured.items()}
    beyond = {name: peaks[name] - side[0]["before"] for name, side in reports.items()}
    for what, values in (("beyond the loaded weights", beyond), ("of the process", peaks)):
        print(f"peak MB {what}:", {name: round(x / 1e6) for name, x in values.items()}, f"ratio {values['torch'] / values['jax']:.2f}")


if __name__ == "__main__":
    main()
