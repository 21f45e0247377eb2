"""Settings that several config files share: what a paper fixes, whatever the model and the hardware.

They are here and not beside the config files because those are loaded by path, from any folder.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dat_jax import settings
from dat_jax.config import defaults
from dat_jax.methods import METHODS

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


def _continuous(method: str, radius: float, prompt: int, steps: int) -> dict[str, Any]:
    """What CAT, CAPO and MixAT have in common: Continuous-AdvTrain's attack and training, on so many tokens of prompt and of response."""
    attack = {"steps": 10, "sites": (0,), "radius": radius, "absolute_radius": False, "narrowest": 1.0, "step_size": 1e-4, "absolute": True}
    attack |= {"optimizer": "sign", "iterate": "last", "rows": 0}
    training = {"steps": steps, "flops": 0.0, "optimizer": "adamw", "learning_rate": 2e-4, "weight_decay": 1e-3, "clip": 0.3}
    # Its warm-up of 0.03 is no field of its settings, and is lost.
    training |= {"warmup": 0.0, "final_learning_rate": 0.0, "lora.rank": 64, "lora.alpha": 16.0, "lora.dropout": 0.1}
    data = {"perturb": "all", "prompt_length": prompt, "response_length": prompt}
    return _below(f"methods.{method}.perturbation", attack) | _below("training", training) | _below("data", data)


def _below(group: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for key, value in keys.items()}


ROWS = {"data.adversarial_rows": 8, "data.utility_rows": 56}  # an eighth of the 64 rows of a step is adversarial
CAT_LOSSES = {
    **{"away_weight": 0.5, "toward_weight": 0.5, "utility_weight": 1.0, "away_cutoff": 5.0, "toward_cutoff": 0.5, "slope": 0.001},
    **{"away": "nll", "retention": "nll", "cutoff_over": "batch"},
}
CAT_ROWS = {"perturbed": 1.0, "held": 0.0}
LAT = {
    **_below("methods.lat.perturbation", {"steps": 16, "sites": (0, 9, 17, 25, 31), "radius": 6.0, "absolute_radius": True}),
    **_below("methods.lat.perturbation", {"absolute": True, "optimizer": "adam", "iterate": "last", "narrowest": 1.0}),
    **_below("methods.lat", {"adversary_toward": 0.5, "adversary_away": 0.5, "updates": 4}),
    **_below("methods.lat.objective", {"away_weight": 0.5, "toward_weight": 0.5, "away": "log_1_minus_p", "away_cutoff": 5.0}),
    **_below("methods.lat.objective", {"toward_cutoff": 0.0}),
    # A new AdamW at every step: there is no schedule.
    **_below("training", {"steps": 100, "flops": 0.0, "optimizer": "adamw", "clip": 1.0, "warmup": 0.0, "final_learning_rate": 1.0}),
    **_below("training.lora", {"rank": 64, "alpha": 8.0, "dropout": 0.0}),  # alpha and dropout are PEFT's own
    **_below("data", {"adversarial_rows": 16, "utility_rows": 16, "prompt_length": 1024, "response_length": 1024, "perturb": "all"}),
}
CIRCUIT_BREAKERS = {
    **_below("methods.circuit_breakers", {"layers": (10, 20), "schedule": 2.0}),
    **_below("training", {"steps": 150, "flops": 0.0, "optimizer": "adamw", "learning_rate": 1e-4}),
    **_below("training", {"warmup": 0.0, "final_learning_rate": 1.0}),
    **_below("training.lora", {"rank": 16, "alpha": 16.0, "dropout": 0.05}),
    **_below("data", {"adversarial_rows": 16, "utility_rows": 16, "prompt_length": 512, "response_length": 512}),
}
# Method, or method and model, -> what its published code trains with, as far as it is known. What it does not fix is left as it was.
REFERENCES: dict[str, dict[str, Any]] = {
    # The published radius is 0.05 for Llama and Mistral, 0.1 for Gemma and Phi-3, 0.075 for Zephyr.
    "cat": _continuous("cat", 0.05, 128, 760) | ROWS | _below("methods.cat.objective", CAT_LOSSES) | _below("methods.cat", CAT_ROWS),
    # It has no utility rows. Here every batch has some, and their weight is 0.
    "capo": _continuous("capo", 0.05, 64, 360)
    | _below("methods.capo", {"beta": 0.25, "preference_weight": 1.0, "utility_weight": 0.0, "away_cutoff": 5.0})
    | {"data.adversarial_rows": 64, "data.utility_rows": 8},
    # Two epochs of the data of which CAT's 760 steps are five.
    "mixat": _continuous("mixat", 0.075, 128, 304)
    | ROWS
    | _below("methods.mixat.objective", CAT_LOSSES)
    | _below("methods.mixat", CAT_ROWS | {"share": 0.5}),
    "lat_llama2": LAT
    | _below("methods.lat.objective", {"utility_weight": 1.5, "retention": "nll"})
    | {"methods.lat.perturbation.step_size": 5e-2, "training.learning_rate": 2e-5},
    "lat_llama3": LAT
    | _below("methods.lat.objective", {"utility_weight": 0.1, "retention": "reverse_kl"})
    | {"methods.lat.perturbation.step_size": 1e-3, "training.learning_rate": 8e-5},
    "circuit_breakers_llama3": CIRCUIT_BREAKERS | {"methods.circuit_breakers.alpha": 10.0},
    "circuit_breakers_mistral": CIRCUIT_BREAKERS | {"methods.circuit_breakers.alpha": 5.0},
    "r2d2": _below("methods.r2d2", {"pool": 180, "tokens": 20, "steps": 5, "candidates": 512, "topk": 256})
    | _below("methods.r2d2", {"reset_every": 50, "reset_share": 0.2})
    | _below("methods.r2d2.objective", {"away_weight": 0.5, "toward_weight": 0.5, "utility_weight": 1.0, "away": "log_1_minus_p"})
    | _below("methods.r2d2.objective", {"away_cutoff": 5.0, "toward_cutoff": 0.0, "retention": "nll"})
    | _below("training", {"steps": 2000, "flops": 0.0, "optimizer": "adamw", "learning_rate": 2e-5, "final_learning_rate": 0.0})
    | {"training.lora.rank": 0, "data.perturb": "user"},
    # For Llama-3-8B: two epochs of its own data in batches of 128. Steps and the split of the rows are left.
    "derta": _below("methods.derta", {"prefix_weight": 1.0, "transition_weight": 1.0, "utility_weight": 1.0})
    | _below("training", {"optimizer": "adamw", "learning_rate": 2e-5, "weight_decay": 2e-5, "warmup": 0.03, "final_learning_rate": 0.0})
    | _below("data", {"prompt_length": 512, "response_length": 512})
    | {"training.lora.rank": 0},
}


def reference(config: ConfigDict, name: str) -> ConfigDict:
    """Sets what a method's published code trains with, and returns the configuration; docs/decisions.md says what differs all the same.

    name: of REFERENCES. `data`, `training` and the method's own group are set; one workdir has one of them. Precision, mesh and
    micro-batches belong to the hardware and stay as they are: the published code of CAT trains on NF4 by default, and its cutoffs see 8
    rows at a time.
    Raises ValueError for a name that there is not, and where config.training.methods has no method that the preset is for.
    """
    if name not in REFERENCES:
        raise settings.no_such_key(name, REFERENCES, "presets.reference: ")
    group = next(key.split(".")[1] for key in REFERENCES[name] if key.startswith("methods."))
    readers = [method.name for method in METHODS.values() if method.key == group]
    if not set(readers) & set(config.training.methods):
        raise ValueError(f"config.training.methods is {tuple(config.training.methods)}, and the preset {name} is for others; allowed with "
                         f"it: {' or '.join(readers)}, set before the preset is taken")  # fmt: skip
    config.update_from_flattened_dict(REFERENCES[name])
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
