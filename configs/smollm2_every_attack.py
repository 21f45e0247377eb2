"""SmolLM2-135M-Instruct and two defended versions of it under the attacks and judges that a laptop can run.

It shows that they run on a real model, on two behaviors: what a model of 135 million weights says is rarely an answer. About an hour and a
half on two cores. Files as in configs/smollm2_cpu.py, but for the sampler's, and:

    data/templates.jsonl    jailbreak templates: {"name", "template"} per line
    data/infilled.csv       prompts of a diffusion model: original_prompt, inpainted_prompt
    data/test_cases.json    HarmBench's test cases of these behaviors
    data/heldout.jsonl      chats that nothing is trained on
    data/arc_like.jsonl     multiple-choice questions in ARC's format

    python -m dat_jax.main --config=configs/smollm2_every_attack.py --workdir=runs/every_attack
"""

from dat_jax.config import defaults

TEXT = ("direct", "direct_samples", "rewrite", "tense", "translation", "persuasion", "best_of_n", "templates", "infilling", "test_cases")
GIVEN = ("gcg", "prefill", "prefill+rewrite", "prefill_words", "replay")
INSIDE = ("embedding", "embedding+rewrite", "embedding_step_sizes", "embedding_radius", "embedding_suffix_radius")


def get_config():
    """Returns the configuration of the run."""
    c = defaults()
    c.mesh.fsdp = 1
    c.target.model = c.rewriter.model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.rewriter.update({"max_new_tokens": 40, "temperature": 0.7})
    c.data.update({"behaviors": "data/adv_training_behaviors.csv", "targets": "data/adv_training_targets.json"})
    c.data.update({"safe_responses": "data/adv_training_behaviors_safe_responses_longer.csv", "chats": "data/chats.jsonl"})
    c.data.update({"eval_behaviors": "data/eval_behaviors.csv", "eval_targets": "data/harmbench_targets_text.json"})
    c.data.update({"benign": "data/benign.jsonl", "borderline": "data/xstest_prompts.csv", "heldout_chats": "data/heldout.jsonl"})
    c.data.update({"tasks": ("arc_like=data/arc_like.jsonl",), "prompt_length": 64, "response_length": 32})
    c.data.update({"adversarial_rows": 4, "utility_rows": 4})
    c.training.methods = ("undefended", "cat", "mixat")
    for method in (c.methods.cat, c.methods.mixat):
        method.perturbation.update({"steps": 5, "radius": 0.1, "step_size": 0.25})
        method.objective.utility_weight = 2.0
    c.training.update({"steps": 16, "learning_rate": 6e-4, "warmup": 0.1, "clip": 1.0, "save_every": 8, "watch_every": 0})
    c.training.lora.update({"rank": 8, "alpha": 16.0})
    c.evaluation.attacks = (*TEXT, *GIVEN, *INSIDE, "latent", "latent+rewrite")
    c.evaluation.judges = ("refusal_topic", "refusal_prefix", "xstest:strings")
    c.evaluation.measures = ("harmful", "chats", "tasks")
    c.evaluation.update({"behaviors": 2, "utility_prompts": 8, "max_new_tokens": 24, "batch_size": 4, "forms": ("past", "polite")})
    a = c.attacks
    a.direct_samples.answers, a.best_of_n.attempts, a.tense.tries = 2, 4, 1
    a.translation.languages, a.persuasion.techniques = ("zu",), ("logical_appeal",)
    a.templates.file, a.infilling.file, a.test_cases.file = "data/templates.jsonl", "data/infilled.csv", "data/test_cases.json"
    a.gcg.update({"steps": 2, "candidates": 16, "batch_size": 16})
    a.embedding.radii = (0.05, 0.5)
    for attack in (a.embedding, a.embedding_suffix, a.latent):
        attack.perturbation.steps = 6
    a.embedding_step_sizes.update({"step_sizes": (0.1, 0.25), "restarts": 1})
    a.embedding_step_sizes.perturbation.steps = 5
    a.latent.perturbation.sites = (8,)
    c.report.formats = ("harmbench", "adversariallm", "jailbreakbench", "inspect")
    return c
