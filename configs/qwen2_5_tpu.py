"""DAT and CAT on Qwen2.5-14B-Instruct as in the DAT paper (arXiv 2602.15238): prompts from LLaDA-8B-Base, LoRA rank 64, bfloat16.

Reproduces: the Qwen2.5-14B-Instruct row (40 attack steps, learning rate 1e-4, utility weight 0.45).
Hardware: one v5e-16 slice (v5e:4x4, 4 hosts, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 9.2 of 15.75 GiB per chip and, by the chips' public peaks, at least 3.8 s.

    python -m dat_jax.main --config=configs/qwen2_5_tpu.py --mode=compile     # anywhere, no TPU: does it fit?
    TYPE=v5litepod-16 launch/supervise.sh --spot --workdir=gs://BUCKET/qwen2_5 --config=configs/qwen2_5_tpu.py

The files to bring and the paper's own settings are in `dat_jax.presets.paper`.
"""

from dat_jax import presets


def get_config():
    """Returns the configuration of Qwen2.5-14B-Instruct on v5e:4x4."""
    c = presets.paper("Qwen/Qwen2.5-14B-Instruct")
    c.mesh.update({"data": 2, "fsdp": 1, "tensor": 8, "processes": 4})
    c.topology = "v5e:4x4"
    c.target.attention = "xla"  # as in configs/llama3_tpu.py
    c.methods.cat.perturbation.steps = 40
    c.evaluation.batch_size = 32  # with 64 rows the attack does not fit beside the target, which stays while a trained model is evaluated
    return c
