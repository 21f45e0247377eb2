"""DAT and CAT on Qwen2.5-14B-Instruct on one GPU of 40 GB: frozen weights of target and sampler in 4 bits (nf4), 16 rows at a time.

Settings but for precision and memory: configs/qwen2_5_tpu.py. Hardware: one A100 of 40 GB.
Time: no run has been timed. Compiled for an A100 of 40 GB (XLA:GPU of jax 0.10.2, no GPU was there), a training step needs 27.6 of 35.5 GiB
and by the public peaks at least 46.6 s (760 steps: 9.8 hours per method). The whole run takes at least 86 hours (docs/gpu.md).

    pip install -e '.[cuda]'
    python -m dat_jax.main --config=configs/qwen2_5_gpu_40gb.py --mode=compile     # anywhere, no GPU: does it fit?
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m dat_jax.main --config=configs/qwen2_5_gpu_40gb.py --workdir=runs/qwen2_5_40gb
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of Qwen2.5-14B-Instruct on one GPU of 40 GB."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "qwen2_5_tpu.py"))["get_config"]()
    c.mesh.update({"data": 1, "tensor": 1, "processes": 1})
    c.topology = "a100_40:1x1"
    c.target.dtype = c.sampler.dtype = "nf4"
    c.attacks.embedding.perturbation.keep_products = False
    c.training.micro_batch = 16  # two adversarial rows, their refusals and 14 utility rows
    c.sampler.batch_size = 32
    c.evaluation.batch_size = 16
    return c
