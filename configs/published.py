"""Attacks a chat model with the published numbers of tries, steps and samples, where the defaults are smaller.

Reproduces: the attacks of DAT's evaluation (arXiv 2602.15238: GCG, PAIR, 1,000 direct samples, 1,000 of best-of-N, 1,024 infilled prompts)
and the embedding attacks of AdversariaLLM and arXiv 2407.15902. docs/own_model_and_data.md has a table of the numbers.
Hardware: accelerators. The sampler of `infilling` is LLaDA-8B-Base, and `pair` keeps the rewriter beside the model.
Time: not measured. 100 behaviors are 300,000 answers, and GCG takes 26 million forward passes: days on one accelerator.

    python -m dat_jax.main --config=configs/published.py --workdir=runs/mine --mode=evaluate,judge,report \\
        --config.target.model=FOLDER_OR_HUB_ID --config.data.eval_behaviors=FILE.csv --config.rewriter.model=FOLDER_OR_HUB_ID

The keys of configs/evaluate.py go on this line, too. Leave an attack out with --config.evaluation.attacks=....
"""

from dat_jax import presets
from dat_jax.config import defaults


def get_config():
    """Returns the configuration that attacks `target.model` with `data.eval_behaviors`."""
    c = defaults()
    c.training.methods = ()
    c.sampler.model = "GSAI-ML/LLaDA-8B-Base"
    for model in (c.target, c.sampler):
        model.update({"dtype": "bfloat16", "compute_dtype": "bfloat16"})
    c.data.update({"prompt_length": 256, "response_length": 256})
    c.evaluation.update({"judges": ("refusal_prefix",), "max_new_tokens": 256, "batch_size": 32})
    c.evaluation.attacks = (
        "direct", "direct_samples", "tense", "best_of_n", "infilling", "pair", "gcg", "prefill", "prefill_tokens", "embedding",
        "embedding_suffix", "embedding_unbounded",
    )  # fmt: skip
    return presets.published_attacks(c)
