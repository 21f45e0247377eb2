"""DAT and CAT on Llama-3-8B-Instruct as in the DAT paper (arXiv 2602.15238): prompts from LLaDA-8B-Base, LoRA rank 64, bfloat16.

Reproduces: the Llama-3-8B-Instruct row (learning rate 1e-4, utility weight 0.45).
Hardware: one v5e-16 slice (v5e:4x4, 4 hosts, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 10.2 of 15.75 GiB per chip and, by the chips' public peaks, at least 0.78 s.

    python -m dat_jax.main --config=configs/llama3_tpu.py --mode=compile --workdir=runs/compile            # anywhere, no TPU: does it fit?
    TYPE=v5litepod-16 launch/supervise.sh --spot --workdir=gs://BUCKET/llama3 --config=configs/llama3_tpu.py

Files under data/ (from the working directory of every host, or gs:// paths): HarmBench-format behaviors, targets and safe responses as
Continuous-AdvTrain ships them, evaluation behaviors and XSTest as in configs/smollm2_cpu.py, and UltraChat made into a folder by
`python -m dat_jax.data.prepare`. The paper does not state radius, step size, LoRA rank or steps: those are Continuous-AdvTrain's.

The mesh keeps each layer's weights whole in a group of eight chips (tensor) and repeats them twice (data): the attack reads the weights ten
times per step, and with fsdp each reading would gather them over the links again.
"""

from dat_jax.config import defaults


def get_config():
    """Returns the configuration of Llama-3-8B-Instruct on v5e:4x4."""
    c = defaults()
    c.training.methods = ("undefended", "cat", "dat")
    c.mesh.update({"data": 2, "fsdp": 1, "tensor": 8, "processes": 4})
    c.topology = "v5e:4x4"
    bf16 = {"dtype": "bfloat16", "compute_dtype": "bfloat16"}
    c.target.update({"model": "meta-llama/Meta-Llama-3-8B-Instruct", "attention": "splash", **bf16})
    c.sampler.update({"model": "GSAI-ML/LLaDA-8B-Base", **bf16})
    c.sampler.update({"samples": 1000, "keep": 16, "prompt_tokens": (16, 112), "response_tokens": 128, "steps": 64, "batch_size": 256})
    c.data.update({"behaviors": "data/adv_training_behaviors.csv", "targets": "data/adv_training_targets.json"})
    c.data.update({"safe_responses": "data/adv_training_behaviors_safe_responses_longer.csv", "chats": "data/ultrachat"})
    c.data.update({"eval_behaviors": "data/eval_behaviors.csv", "eval_targets": "data/harmbench_targets_text.json"})
    c.data.update({"borderline": "data/xstest_prompts.csv"})
    c.data.update({"prompt_length": 256, "response_length": 256, "adversarial_rows": 8, "utility_rows": 56})
    c.methods.cat.perturbation.update({"steps": 10, "radius": 0.05, "step_size": 0.25, "keep_products": True})
    c.methods.cat.objective.utility_weight = 0.45
    c.training.update({"steps": 760, "learning_rate": 1e-4, "save_every": 20, "watch_every": 100, "keep_products": True})
    c.training.lora.update({"rank": 64, "alpha": 16.0})
    c.evaluation.update({"max_new_tokens": 256, "batch_size": 64})
    c.attacks.embedding.perturbation.update({"steps": 100, "radius": 0.05, "step_size": 0.1, "keep_products": True})
    return c
