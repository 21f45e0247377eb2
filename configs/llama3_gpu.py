"""DAT and CAT on Llama-3-8B-Instruct on one GPU of 80 GB, as in the DAT paper (arXiv 2602.15238) and configs/llama3_tpu.py.

Reproduces: the Llama-3-8B-Instruct row (learning rate 1e-4, utility weight 0.45; batches of 8 adversarial + 56 utility rows).
Hardware: one H100 or A100 of 80 GB.
Time: no run has been timed. Compiled for an H100 (XLA:GPU of jax 0.10.2, no GPU was there), a training step needs 37.8 GiB and by the
public peaks at least 3.9 s (760 steps: 50 minutes per method); the whole run at least 21 hours. 15 of them draw and answer 1000 prompts
for each of 100 behaviors, which `sampler.samples` scales.

    pip install -e '.[cuda]'
    python -m dat_jax.main --config=configs/llama3_gpu.py --mode=compile     # anywhere, no GPU: does it fit?
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python -m dat_jax.main --config=configs/llama3_gpu.py --workdir=runs/llama3

The files to bring and the paper's own settings are in `dat_jax.presets.paper`. jax takes 75 % of a GPU's memory unless told otherwise.

Where a step's memory goes, in GiB (8.03 billion weights, 6.98 of them in the layers; rows of 512 tokens, 32 layers of width 4096):

    14.96   weights, bfloat16: 8.03e9 x 2 bytes
    13.00   the layers' weights with the adapters merged, which the attack reads: 6.98e9 x 2
     3.13   adapters of rank 64, 168 million numbers in float32 (0.63), their two moments (1.25), gradients of a part and of all (1.25)
     6.24   the attack's 4 rows x (0.25 + 1.31): the residual stream before each layer, 32 x 512 x 4096 x 4 bytes, and the kept products,
            32 layers x 512 tokens x 43008 numbers (q, k, v, o, gate, up, down) in bfloat16
     0.48   the rest: the backward pass of one layer and the head

The peak is in the attack. The outer step comes after it, without the merged weights: 36 rows (4 adversarial, 4 toward, 28 utility) x 0.25,
and the backward pass of one layer and the head. Other choices, compiled: micro_batch=0, the whole batch at once: 50.4; 16: 34.9; 16 with
training.keep_products, 14 % fewer FLOPs: 47.6; 32 with it: 77.1, which does not fit. Around the step: the sampler 19.8, or 49.6 where
prompts are drawn anew during the training (14.96 + 13.00 + 1.87 beside it); with the target's 13.0 beside a merged model, one answer to 16
attempts 29.4 and the embedding attack on 16 of them 55.3.
"""

from dat_jax import presets


def get_config():
    """Returns the configuration of Llama-3-8B-Instruct on one GPU of 80 GB."""
    c = presets.paper("meta-llama/Meta-Llama-3-8B-Instruct")
    c.mesh.fsdp = 1
    c.topology = "h100:1x1"
    c.training.micro_batch = 32
    c.evaluation.batch_size = 16  # so many rows of the embedding attack fit with their products kept
    return c
