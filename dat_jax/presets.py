"""Settings that several config files share: what a paper fixes, whatever the model and the hardware.

They are here and not beside the config files because those are loaded by path, from any folder.
"""

from typing import Any

from ml_collections import ConfigDict

from dat_jax.config import defaults

# Keys below config.attacks whose defaults are smaller than what was published, so that a first run ends the same day.
PUBLISHED_ATTACKS: dict[str, Any] = {
    "direct_samples.answers": 1000,
    "best_of_n.attempts": 1000,
    "gcg.steps": 500,
    "embedding_suffix.suffix": " ".join("x" * 20),
    "embedding_suffix.perturbation.steps": 100,
}


def published_attacks(config: ConfigDict) -> ConfigDict:
    """Sets the published numbers of the attacks in a configuration, and returns it; docs/own_model_and_data.md says who published them."""
    for key, value in PUBLISHED_ATTACKS.items():
        *groups, name = key.split(".")
        group = config.attacks
        for part in groups:
            group = group[part]
        group[name] = value
    return config


def paper(model: str) -> ConfigDict:
    """Returns the DAT paper's settings (arXiv 2602.15238) for a model: undefended, CAT and DAT, prompts from LLaDA-8B-Base, bfloat16.

    Learning rate and utility weight are those of its Llama-3-8B-Instruct and Qwen2.5-14B-Instruct rows. It states neither radius, step
    size, LoRA rank nor steps: those are Continuous-AdvTrain's. Mesh, attention and training.keep_products belong to the hardware and are
    left to the config file.

    Files under data/ (from the working directory of every host, or gs:// paths): HarmBench-format behaviors, targets and safe responses as
    Continuous-AdvTrain ships them, evaluation behaviors and XSTest as in configs/smollm2_cpu.py, and UltraChat made into a folder by
    `python -m dat_jax.data.prepare`.
    """
    c = defaults()
    c.training.methods = ("undefended", "cat", "dat")
    bf16 = {"dtype": "bfloat16", "compute_dtype": "bfloat16"}
    c.target.update({"model": model, **bf16})
    c.sampler.update({"model": "GSAI-ML/LLaDA-8B-Base", **bf16})
    c.sampler.update({"samples": 1000, "keep": 16, "prompt_tokens": (16, 112), "response_tokens": 128, "steps": 64, "batch_size": 256})
    # Not the paper's: without it DAT refuses harmless prompts in the forms that only its adversarial prompts have (docs/experiments.md).
    c.utility.update({"samples": 4, "answers": 2000, "keep": "judge", "response": "own"})
    c.data.update({"behaviors": "data/adv_training_behaviors.csv", "targets": "data/adv_training_targets.json"})
    c.data.update({"safe_responses": "data/adv_training_behaviors_safe_responses_longer.csv", "chats": "data/ultrachat"})
    c.data.update({"eval_behaviors": "data/eval_behaviors.csv", "eval_targets": "data/harmbench_targets_text.json"})
    c.data.update({"borderline": "data/xstest_prompts.csv"})
    c.data.update({"prompt_length": 256, "response_length": 256, "adversarial_rows": 8, "utility_rows": 56})
    c.methods.cat.perturbation.update({"steps": 10, "radius": 0.05, "step_size": 0.25, "keep_products": True})
    c.methods.cat.objective.utility_weight = 0.45
    c.training.update({"steps": 760, "learning_rate": 1e-4, "save_every": 20, "watch_every": 100})
    c.training.lora.update({"rank": 64, "alpha": 16.0})
    c.evaluation.update({"max_new_tokens": 256, "batch_size": 64})
    c.attacks.embedding.perturbation.update({"steps": 100, "radius": 0.05, "step_size": 0.1, "keep_products": True})
    return c
