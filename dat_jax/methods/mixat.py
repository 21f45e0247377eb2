"""MixAT (arXiv 2505.16947): CAT whose adversarial rows start from rewrites of the request in half of the cases.

The published code draws plain requests or persuasive paraphrases per micro-batch. Here every batch holds both in equal shares, in the mean,
and the rewrites are those of config.data.train_rewrites: a paraphrase that a paid service writes anew in every run cannot be repeated.
"""

import dataclasses

from dat_jax.methods import cat
from dat_jax.training.perturbation import Perturbation


@dataclasses.dataclass(frozen=True)
class Settings(cat.Settings):
    """config.methods.mixat; the published radius."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(radius=0.075))


METHOD = dataclasses.replace(
    cat.METHOD, name="mixat", title="MixAT", paper="MixAT (arXiv 2505.16947)", prompts="rewrites", settings=Settings, color=""
)
