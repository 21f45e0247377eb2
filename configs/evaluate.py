"""Attacks any chat model with a behaviors file alone: answers, verdicts and the report. Nothing is trained.

Reproduces: no paper; the questions of HarmBench, JailbreakBench, AdvBench or StrongREJECT, or your own, to a model of yours.
Hardware: a CPU for a model of some hundred million parameters; a GPU or TPU for larger ones, there with the two keys of bfloat16 below.
Time: not noted; SmolLM2-135M-Instruct on 4 behaviors takes minutes on two cores.

    python -m dat_jax.main --config=configs/evaluate.py --workdir=runs/mine --config.target.model=FOLDER_OR_HUB_ID \\
        --config.data.eval_behaviors=FILE.csv --config.evaluation.behaviors=4      # a first look: 4 behaviors; leave it out for all

Called again it goes on where it was, or does what is new: another attack (--config.evaluation.attacks=direct,prefill), another judge
(--config.evaluation.judges=refusal_topic,refusal_prefix), more behaviors, or other models beside the first:

    --config.evaluation.compare=defended=FOLDER,RUN/seed_0/dat      # Hugging Face folders, hub ids, or what a run of dat_jax trained
    --config.target.checkpoint=RUN/seed_0/dat                       # the target itself as that run trained it from target.model
    --config.target.dtype=bfloat16 --config.target.compute_dtype=bfloat16      # half the memory; on a CPU slower
    --config.data.eval_targets=FILE.json      # harmful responses for the embedding and prefill attacks; without: "Sure, here is ..."
    --config.data.benign=FILE.jsonl --config.data.borderline=xstest_prompts.csv      # does it still answer what it should?

refusal_prefix looks for refusals in the first words and takes everything else for compliance, an incompetent answer too.
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
    c.attacks.embedding.perturbation.update({"steps": 20, "radius": 0.05, "step_size": 0.2, "iterate": "best"})
    return c
