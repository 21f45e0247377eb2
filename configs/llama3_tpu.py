"""DAT and CAT on Llama-3-8B-Instruct as in the DAT paper (arXiv 2602.15238): prompts from LLaDA-8B-Base, LoRA rank 64, bfloat16.

Reproduces: the Llama-3-8B-Instruct row (learning rate 1e-4, utility weight 0.45).
Hardware: one v5e-16 slice (v5e:4x4, 4 hosts, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 10.3 of 15.75 GiB per chip and, by the chips' public peaks, at least 0.76 s.

    python -m dat_jax.main --config=configs/llama3_tpu.py --mode=compile     # anywhere, no TPU: does it fit?
    TYPE=v5litepod-16 launch/supervise.sh --spot --workdir=gs://BUCKET/llama3 --config=configs/llama3_tpu.py

The files to bring and the paper's own settings are in `dat_jax.presets.paper`.

The mesh keeps each layer's weights whole in a group of eight chips (tensor) and repeats them twice (data): the attack reads the weights ten
times per step, and with fsdp each reading would gather them over the links again.
"""

from dat_jax import presets


def get_config():
    """Returns the configuration of Llama-3-8B-Instruct on v5e:4x4."""
    c = presets.paper("meta-llama/Meta-Llama-3-8B-Instruct")
    c.mesh.update({"data": 2, "fsdp": 1, "tensor": 8, "processes": 4})
    c.topology = "v5e:4x4"
    c.target.attention = "xla"  # the splash kernel's training step ends in an internal error of libtpu 0.0.52
    c.training.keep_products = True
    return c
