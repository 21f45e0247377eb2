"""DAT and CAT on Llama-3-8B-Instruct on one GPU of 24 GB: frozen weights of target and sampler in 4 bits (nf4), 16 rows at a time.

Settings but for precision and memory: configs/llama3_gpu.py. Hardware: one RTX 4090 or another card of 24 GB with bfloat16.

    pip install -e '.[cuda]'
    python -m dat_jax.main --config=configs/llama3_gpu_24gb.py --mode=compile     # anywhere, no GPU: does it fit?
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m dat_jax.main --config=configs/llama3_gpu_24gb.py --workdir=runs/llama3_24gb
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of Llama-3-8B-Instruct on one GPU of 24 GB."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "llama3_gpu.py"))["get_config"]()
    c.topology = "rtx4090:1x1"
    c.target.dtype = c.sampler.dtype = "nf4"
    c.training.micro_batch = 16  # two adversarial rows, their refusals and 14 utility rows
    c.methods.cat.perturbation.keep_products = c.attacks.embedding.perturbation.keep_products = False
    c.sampler.batch_size = 32
    c.evaluation.batch_size = 8
    return c
