"""Distributional adversarial training (DAT, arXiv 2602.15238): the inner maximisation and the loss of CAT on sampled prompts x ~ p(x | y).

Nothing but the prompts differs, and both read the settings of config.methods.cat, so that a comparison of the two cannot drift apart.
"""

import dataclasses

from dat_jax.methods import cat

METHOD = dataclasses.replace(
    cat.METHOD, name="dat", title="DAT", paper="Distributional Adversarial Training (arXiv 2602.15238)", prompts="sampled", group="cat",
    color="#1d6f8f",
)  # fmt: skip
