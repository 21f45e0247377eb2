"""Latent attack: the residual stream over the prompt is perturbed at sites inside the model, alone and on top of a rewrite.

It reaches deeper than the embedding attack. A model that only keeps its first layers from being steered still breaks here, and the curve
over the site shows from which layer on. The attack is that of latent adversarial training (arXiv 2407.15549), with this repository's own
inner maximisation. The tokens of the answer are decoded from the perturbed prompt and are not perturbed themselves.
"""

import dataclasses
from collections.abc import Sequence

from dat_jax import settings as settings_lib
from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.direct import requests
from dat_jax.attacks.embedding import toward
from dat_jax.attacks.rewrite import chosen_forms, rewritten
from dat_jax.attacks.victim import Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.models import transformer
from dat_jax.models.config import ModelConfig
from dat_jax.settings import check
from dat_jax.training.perturbation import Perturbation, possible_sites

GROUP = "latent"


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.latent."""

    perturbation: Perturbation = dataclasses.field(default_factory=lambda: Perturbation(steps=20, iterate="best", sites=(1,)))
    target_eot: bool = True  # whether the end of the turn is part of what is raised; if so, the attack learns to say the target and stop
    forms: tuple[str, ...] = ()  # rewrite forms that latent+rewrite is put on top of; (): all that are tried
    sites_tried: tuple[int, ...] = (0, 1)  # of latent_site, the attack on the direct request at one site at a time; 0: the embeddings

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        check(self, key, {"sites_tried": (possible_sites(self.sites_tried), "one or more integers >= 0, each once")})
        self.perturbation.validate_attack(f"{key}.perturbation", anywhere=True)

    def fits(self, key: str, model: ModelConfig) -> None:
        """Raises ValueError naming the key and the site that a model does not have."""
        transformer.check_sites(model, self.sites_tried, key=f"config.{key}.sites_tried")


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request."""
    return _perturbed(requests(behaviors), victim, context.settings, context.settings.perturbation)


def on_rewrites(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs each rewrite of the form."""
    return _perturbed(rewritten(behaviors, context), victim, context.settings, context.settings.perturbation)


def at_site(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Perturbs the direct request at the one site that is the variant's name."""
    how = dataclasses.replace(context.settings.perturbation, sites=(int(context.variant),))
    return _perturbed(requests(behaviors), victim, context.settings, how)


def _perturbed(attempts: Sequence[Attempt], victim: Victim, settings: Settings, how: Perturbation) -> list[Attempt]:
    """Every model under attack has its own number of layers, so each is asked before the search begins."""
    settings_lib.fits(settings, f"attacks.{GROUP}", victim.model.config)
    return victim.perturb(toward(attempts, settings), how)


ATTACK = Attack(
    name="latent", title="Latent attack", surface="latent", attempts=attempts, settings=Settings, group=GROUP, adaptive=True,
    uses_target=True, raises=True, choices=("forms", "sites_tried"),
)  # fmt: skip
ON_REWRITES = dataclasses.replace(
    ATTACK, name="latent+rewrite", title="Latent attack on rewrite", attempts=on_rewrites,
    variants=lambda settings, forms: chosen_forms(settings.forms, forms, f"config.attacks.{GROUP}.forms"),
)  # fmt: skip
SITES = dataclasses.replace(
    ATTACK, name="latent_site", title="Latent attack at site", attempts=at_site,
    variants=lambda settings, forms: [str(site) for site in settings.sites_tried], curve="site of the perturbation",
)  # fmt: skip
