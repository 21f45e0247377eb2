"""DAT and CAT on Llama-3-8B-Instruct on four TPU v5e chips: frozen weights of target and sampler in 4 bits (nf4).

Settings but for precision and memory: configs/llama3_tpu.py. Hardware: one v5e-4 machine (v5e:2x2, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 11.0 of 15.75 GiB per chip and, by the chips' public peaks, at least 3.6 s; the
whole run takes at least 16 hours (docs/tpu.md).

    python -m dat_jax.main --config=configs/llama3_tpu_4chips.py --mode=compile     # anywhere, no TPU: does it fit?
    TYPE=v5litepod-4 launch/supervise.sh --spot --workdir=gs://BUCKET/llama3 --config=configs/llama3_tpu_4chips.py
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of Llama-3-8B-Instruct on v5e:2x2."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "llama3_tpu.py"))["get_config"]()
    c.mesh.update({"data": 1, "tensor": 4, "processes": 1})
    c.topology = "v5e:2x2"
    c.target.dtype = c.sampler.dtype = "nf4"
    c.training.keep_products = c.attacks.embedding.perturbation.keep_products = False
    c.sampler.batch_size = 64
    c.evaluation.batch_size = 16
    return c
