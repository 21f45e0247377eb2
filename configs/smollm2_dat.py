"""CAT, CAT on rule-made rewrites and DAT on a safety-tuned SmolLM2-135M-Instruct, on a CPU, with a sampler adapted from the model itself.

CAT sees the behaviors' own requests. MixAT also sees eleven rule-made forms of each (examples/request_pairs.py). DAT sees prompts that a
diffusion LM samples for the harmful responses. The evaluation holds out three forms (future, indirect, requirement): neither the rule-made
rewrites nor the sampler's pairs have them. Steps, rows, losses and utility data are the same. Each seed is a training, a sampling and an
evaluation of its own; target and sampler are the same. "undefended" is the safety-tuned model. docs/results.md has the outcome, also of DAT
on the prompts that the undefended model answers. Files: docs/experiments.md, "Files of the experiments on SmolLM2".

    python -m dat_jax.main --config=configs/smollm2_safety.py --workdir=runs/smollm2_safety
    python -m dat_jax.main --config=configs/smollm2_safety.py --workdir=runs/smollm2_safety --mode=export
    python -m dat_jax.diffusion.adapt --model=HuggingFaceTB/SmolLM2-135M-Instruct --pairs=data/sampler_pairs.jsonl --output=data/sampler \\
        --steps=240 --shortest_prompt=6 --longest_prompt=32 --response_tokens=24 --validation_pairs=data/heldout_pairs.jsonl
    python -m dat_jax.main --config=configs/smollm2_dat.py --workdir=runs/smollm2_dat --config.seeds=1,3,4

Read likelihoods before attack success: what a model of 135 million weights complies with is rarely an answer. The report has the nats per
token of the harmful responses, before and after, beside refusals of harmless prompts.
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of the comparison."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "smollm2_safety.py"))["get_config"]()
    c.target.model = "runs/smollm2_safety/seed_0/export/refusal_sft"
    c.sampler.model = "data/sampler"
    # Two prompts for each of the 100 training behaviors. Half of DAT's rows are requests, and half of MixAT's.
    c.sampler.update({"samples": 2, "keep": 2, "prompt_tokens": (6, 32), "response_tokens": 24, "temperature": 0.7, "mend": 1})
    c.sampler.update({"acceptance": "count", "bound": 2, "cache_refresh": 2})  # half the time of 16 passes over whole rows
    c.sampler.update({"likelihood_samples": 0, "selection": "random", "batch_size": 16, "add_requests": True, "request_share": 0.5})
    c.data.update({"benign": "data/benign.jsonl", "train_rewrites": "data/train_rewrites.jsonl"})
    c.data.update({"adversarial_rows": 4, "utility_rows": 8})
    c.training.methods = ("undefended", "cat", "mixat", "dat")
    # At the published cutoffs (0.5 toward, 5 away, per example) and 4e-4, refusals of rewrites hardly change: docs/experiments.md.
    c.training.update({"steps": 32, "learning_rate": 1e-3, "save_every": 8, "watch_every": 0})
    for method in (c.methods.cat, c.methods.mixat):
        method.perturbation.update({"steps": 4, "radius": 0.1, "step_size": 0.4, "iterate": "best"})
        method.objective.update({"cutoff_over": "token", "toward_cutoff": 0.02, "away_cutoff": 2.0, "utility_weight": 2.0})
    c.evaluation.attacks = ("direct", "rewrite", "best_of_n", "prefill", "infilling", "embedding", "embedding+rewrite")
    c.evaluation.judges = ("refusal_topic", "refusal_prefix", "xstest:strings")
    c.evaluation.measures = ("harmful", "chats", "tasks", "attacks")
    c.evaluation.update({"chats": 64, "batch_size": 14, "prompt_block": 8})  # 41 behaviors are three batches
    c.attacks.best_of_n.attempts = 4
    c.attacks.infilling.update({"preset": "sampler", "samples": 2})
    c.attacks.embedding.forms = ("requirement",)
    c.attacks.embedding.perturbation.update({"steps": 6, "radius": 0.1, "step_size": 0.3})
    return c
