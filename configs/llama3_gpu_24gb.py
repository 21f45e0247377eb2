"""DAT and CAT on Llama-3-8B-Instruct on one GPU of 24 GB: frozen weights of target and sampler in 4 bits (nf4), 16 rows at a time.

Settings but for precision and memory: configs/llama3_gpu.py. Hardware: one RTX 4090 or another card of 24 GB with bfloat16.
Time: no run has been timed. Compiled for an RTX 4090 (XLA:GPU of jax 0.10.2, no GPU was there), a training step needs 16.9 of 21.3 GiB and
by the public peaks at least 17.1 s (760 steps: 3.6 hours per method). The whole run takes at least 93 hours. Drawing 1000 prompts for each
of 100 behaviors is 47 of them; `sampler.samples` scales it.

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
    c.attacks.embedding.perturbation.keep_products = False
    c.sampler.batch_size = 32
    c.evaluation.batch_size = 16
    return c
