"""Attacks any chat model with a behaviors file alone: answers, verdicts and the report. Nothing is trained.

Reproduces: no paper; it asks a model of yours what HarmBench, JailbreakBench, AdvBench, StrongREJECT or a file of your own asks.
Hardware: a CPU for a model of some hundred million parameters; a GPU or TPU for larger ones, there with the two keys of bfloat16 below.
Time: the first look took 3 minutes for SmolLM2-135M-Instruct on two cores with much else to do. All attacks and behaviors take hours there.

    python -m dat_jax.main --config=configs/evaluate.py --workdir=runs/mine --config.target.model=FOLDER_OR_HUB_ID \\
        --config.data.eval_behaviors=FILE.csv

    # a first look, added to the same line:
        --config.evaluation.behaviors=4 --config.evaluation.batch_size=4 --config.evaluation.attacks=direct,prefill,embedding \\
        --config.attacks.embedding.perturbation.steps=5

Called again it goes on where it was, or does what is new: more behaviors, another attack, another judge
(--config.evaluation.judges=refusal_topic,refusal_prefix) or further models. An attack whose settings have changed wants another --workdir.

    --config.evaluation.compare=defended=FOLDER,RUN/seed_0/dat      # side by side: Hugging Face folders, hub ids, or what a run trained
    --config.target.checkpoint=RUN/seed_0/dat                       # the target itself as that run trained it from target.model
    --config.target.dtype=bfloat16 --config.target.compute_dtype=bfloat16      # half the memory; slower on a CPU
    --config.data.eval_targets=FILE.json      # harmful responses for prefill and embedding; without it "Sure, here is ..." is made
    --config.data.benign=FILE.jsonl --config.data.borderline=xstest_prompts.csv      # is it still useful?

The judge refusal_prefix looks for refusals and takes everything else for compliance, an incompetent answer too.
"""

from dat_jax.config import defaults


def get_config():
    """Returns the configuration that attacks `target.model` with `data.eval_behaviors`."""
    c = defaults()
    c.training.methods = ()
    c.data.update({"prompt_length": 128, "response_length": 64})  # tokens; longer prompts are an error that says what to set
    c.evaluation.update({"attacks": ("direct", "rewrite", "best_of_n", "prefill", "embedding", "embedding+rewrite")})
    c.evaluation.update({"judges": ("refusal_prefix",), "max_new_tokens": 128, "temperature": 0.0, "batch_size": 16})
    c.attacks.best_of_n.attempts = 8
    # Where evaluation.attacks names them, and c.rewriter says who writes: a fraction of the published 20 tries and 30 streams.
    c.attacks.tense.tries = 4
    c.attacks.pair.update({"streams": 3, "iterations": 3})
    c.attacks.embedding.perturbation.update({"steps": 20, "radius": 0.05, "step_size": 0.2, "iterate": "best"})
    return c
