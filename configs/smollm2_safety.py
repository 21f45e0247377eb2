"""Ordinary safety tuning, on a CPU, of SmolLM2-135M-Instruct, which complies with most things; configs/smollm2_dat.py starts from it.

Refusals of direct requests, and the model's own answers to harmless ones; no rewrite, no perturbation. Then it is measured what the model
refuses: held-out direct requests, their rewrites, harmless prompts.

"undefended" is SmolLM2 as it came. In configs/smollm2_dat.py it is what this run makes. docs/experiments.md has the commands that make the
files in data/, under "Files of the experiments on SmolLM2". The 48 updates took ten minutes of one core of an AMD EPYC. Then:

    python -m dat_jax.main --config=configs/smollm2_safety.py --workdir=runs/smollm2_safety
    python -m dat_jax.main --config=configs/smollm2_safety.py --workdir=runs/smollm2_safety --mode=export
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of the safety tuning."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "smollm2_cpu.py"))["get_config"]()
    c.sampler.model = ""
    c.data.update({"targets": "data/train_targets.json", "rewrites": "data/eval_rewrites.jsonl", "tasks": ("mmlu=data/mmlu.jsonl",)})
    # Settings are chosen by these harmless prompts; configs/smollm2_dat.py reports others.
    c.data.update({"benign": "data/benign_choices.jsonl", "heldout_chats": "data/heldout_chats.jsonl"})
    # A short system prompt in place of the default one. The longest rewrite has 56 tokens with the template.
    c.data.update({"system": "You are a helpful assistant.", "prompt_length": 56, "response_length": 24, "utility_rows": 12})
    c.training.methods = ("undefended", "refusal_sft")
    # At weight 1 and 6e-4, with 260 chats, the model refused a third of the benign prompts.
    c.methods.refusal_sft.refusal_weight = 0.5
    c.training.update({"steps": 48, "learning_rate": 4e-4, "save_every": 16, "watch_every": 16})
    c.training.keep_products = c.attacks.embedding.perturbation.keep_products = True  # a third less work; the memory is there
    c.evaluation.update({"attacks": ("direct", "rewrite"), "behaviors": 0, "forms": ()})
    c.evaluation.update({"max_new_tokens": 24, "batch_size": 16, "utility_prompts": 120, "refusal": "I cannot fulfill your request."})
    return c
