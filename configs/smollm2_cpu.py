"""CAT and DAT on a real model, SmolLM2-135M-Instruct, on a CPU: two cores, 3 GB of memory, about half an hour once the files are there.

Reproduces the method on real files at a size a laptop can bear: 4 behaviors of 96 tokens per step, 10 attack steps, LoRA. It shows the
machinery and the price (over-refusal), not the paper's numbers: this model refuses hardly anything to begin with, and its harmful answers
are incompetent, so read likelihoods and refusal rates before and after rather than "attack success".

Files, all yours to bring (public formats; no path is special, every key below can be set on the command line):

    data/adv_training_behaviors.csv, adv_training_targets.json, adv_training_behaviors_safe_responses_longer.csv      (Continuous-AdvTrain)
    data/harmbench_behaviors_text_val.csv, harmbench_targets_text.json      (HarmBench)       data/xstest_prompts.csv      (XSTest)
    data/plain_prompts.txt    a few hundred harmless instructions, one per line; imperatives among them ("Outline a plan to ...")
    data/benign.jsonl         other harmless prompts: {"id", "prompt"} per line; whether they are still answered is measured
    data/sampler_chats.jsonl  tens of thousands of short exchanges: {"prompt", "response"} or {"messages"} per line

Preparation: the evaluation behaviors (contextual ones are far longer than 64 tokens), the target's own answers as utility data (somebody
else's chats let it collapse into refusing everything within two dozen steps), and a small sampler where LLaDA does not fit:

    grep -E '^Behavior,|,standard,' data/harmbench_behaviors_text_val.csv > data/eval_behaviors.csv
    python -m dat_jax.stations.own_answers --model=HuggingFaceTB/SmolLM2-135M-Instruct --prompts=data/plain_prompts.txt \\
        --output=data/chats.jsonl --max_new_tokens=48     # a few minutes
    python -m dat_jax.diffusion.pretrain --chats=data/sampler_chats.jsonl --output=data/sampler --steps=3500 \\
        --shortest_prompt=12 --longest_prompt=32 --response_tokens=44     # about 20 minutes, an estimate
    python -m dat_jax.main --config=configs/smollm2_cpu.py --workdir=runs/smollm2

Watch `watch/benign_refused` and `watch/borderline_refused` in metrics.jsonl: a run that refuses more than half of the benign prompts says
COLLAPSED. Then lower the learning rate or raise `methods.cat.objective.utility_weight`. Measured, one seed: at 3e-4, 24 steps raise the
likelihood of refusals a little and change few greedy answers; at 1.5e-3, 12 steps make CAT refuse half of the benign prompts.
"""

from dat_jax.config import defaults


def get_config():
    """Returns the configuration of the CPU run on SmolLM2-135M-Instruct."""
    c = defaults()
    c.mesh.fsdp = 1
    c.target.model = "HuggingFaceTB/SmolLM2-135M-Instruct"  # or a folder; float32, because bfloat16 is slower on a CPU
    c.sampler.model = "data/sampler"
    c.data.update(
        {
            "behaviors": "data/adv_training_behaviors.csv",
            "targets": "data/adv_training_targets.json",
            "safe_responses": "data/adv_training_behaviors_safe_responses_longer.csv",
            "chats": "data/chats.jsonl",
            "eval_behaviors": "data/eval_behaviors.csv",
            "eval_targets": "data/harmbench_targets_text.json",
            "benign": "data/benign.jsonl",
            "borderline": "data/xstest_prompts.csv",
            "prompt_length": 64,  # the template with its default system prompt takes 31 of them
            "response_length": 32,
            "adversarial_rows": 4,
            "utility_rows": 4,
        }
    )
    c.sampler.update({"samples": 16, "keep": 4, "prompt_tokens": (12, 32), "response_tokens": 44, "steps": 16, "temperature": 0.7})
    c.sampler.update({"likelihood_samples": 8, "selection": "stratified", "batch_size": 16})
    c.methods.cat.perturbation.update({"steps": 10, "radius": 0.1, "step_size": 0.25})
    c.methods.cat.objective.utility_weight = 2.0
    c.training.update({"steps": 24, "learning_rate": 3e-4, "warmup": 0.1, "clip": 1.0, "save_every": 8})
    c.training.update({"watch_every": 8, "watch_prompts": 24})
    c.training.lora.update({"rank": 8, "alpha": 16.0})
    c.evaluation.update({"attacks": ("direct", "rewrite", "prefill", "embedding", "embedding+rewrite"), "behaviors": 12})
    c.evaluation.update({"forms": ("past", "polite"), "judges": ("refusal_topic",)})
    c.attacks.embedding.forms = ("past",)
    c.evaluation.update({"utility_prompts": 48, "max_new_tokens": 40, "batch_size": 12})
    c.attacks.embedding.perturbation.update({"steps": 15, "radius": 0.1, "step_size": 0.2, "iterate": "best"})
    return c
