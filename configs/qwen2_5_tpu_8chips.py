"""DAT and CAT on Qwen2.5-14B-Instruct on eight TPU v5e chips, in bfloat16.

Settings but for memory: configs/qwen2_5_tpu.py. Hardware: one v5e-8 machine (v5e:2x4, 16 GB per chip).
Time: no run has been timed. Compiled, a training step needs 12.4 of 15.75 GiB per chip and, by the chips' public peaks, at least 7.8 s; the
whole run takes at least 14 hours (docs/tpu.md).

    python -m dat_jax.main --config=configs/qwen2_5_tpu_8chips.py --mode=compile     # anywhere, no TPU: does it fit?
    TYPE=v5litepod-8 launch/supervise.sh --spot --workdir=gs://BUCKET/qwen2_5 --config=configs/qwen2_5_tpu_8chips.py
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration of Qwen2.5-14B-Instruct on v5e:2x4."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "qwen2_5_tpu.py"))["get_config"]()
    c.mesh.update({"data": 1, "tensor": 8, "processes": 1})
    c.topology = "v5e:2x4"
    c.attacks.embedding.perturbation.keep_products = False
    c.sampler.batch_size = 64
    c.evaluation.batch_size = 16
    return c
