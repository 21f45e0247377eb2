"""DAT and CAT on Gemma-2-9B-it as in the DAT paper (arXiv 2602.15238): prompts from LLaDA-8B-Base, LoRA rank 64, bfloat16.

Reproduces: no row of the paper; the same settings on a model with a vocabulary of 256,000, soft-caps and windows.
Hardware: one v5e-16 slice (v5e:4x4, 4 hosts, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 13.5 of 15.75 GiB per chip and, by the chips' public peaks, at least 0.93 s.

    python -m dat_jax.main --config=configs/gemma_tpu.py --mode=compile     # anywhere, no TPU: does it fit?
    TYPE=v5litepod-16 launch/supervise.sh --spot --workdir=gs://BUCKET/gemma --config=configs/gemma_tpu.py

The files to bring and the paper's own settings are in `dat_jax.presets.paper`.
"""

from dat_jax import presets


def get_config():
    """Returns the configuration of Gemma-2-9B-it on v5e:4x4."""
    c = presets.paper("google/gemma-2-9b-it")
    c.mesh.update({"data": 2, "fsdp": 1, "tensor": 8, "processes": 4})
    c.topology = "v5e:4x4"
    c.target.attention = "xla"  # the splash kernel's training step ends in an internal error of libtpu 0.0.52
    c.training.keep_products = True
    return c
