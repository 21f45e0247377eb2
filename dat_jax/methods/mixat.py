"""MixAT (arXiv 2505.16947): CAT of whose adversarial rows a share, half of them by default, starts from rewrites of the request.

The published code draws plain requests or persuasive paraphrases per micro-batch. Here a batch holds both, in the share's proportion in
the mean, and an epoch exactly. The rewrites are those of config.data.train_rewrites: a paraphrase that a paid service writes anew in every
run cannot be repeated.
"""

import dataclasses

from dat_jax.methods import cat
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation

LEAST = 0.01  # the requests are repeated until the rewrites are this share


@dataclasses.dataclass(frozen=True)
class Settings(cat.Settings):
    """config.methods.mixat; the published radius."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(radius=0.075))
    share: float = 0.5  # of rewrites among the adversarial rows; the others are the requests

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        super().validate(key)
        check(self, key, {"share": (LEAST <= self.share <= 1, f"a share from {LEAST} to 1")})


METHOD = dataclasses.replace(
    cat.METHOD,
    name="mixat",
    title="MixAT",
    paper="MixAT (arXiv 2505.16947)",
    prompts="rewrites",
    share=lambda settings: settings.share,
    settings=Settings,
    color="",
)
