"""Self-consistency under attack: the model is held to its own answers, as consistency training does (arXiv 2510.27062).

The refusals are the target's own answers to the plain requests, where these are refusals. They are learned on the requests, or on sampled
prompts, under the perturbation that makes the harmful response likely. Nothing leads away from the harmful response: what the model says
when it is not attacked is all that it is taught. The target is asked once, before the training.
Benign answers are the chats' own; with config.utility.response="own" those to sampled utility prompts are the target's, too.

    L = toward_weight * NLL(own refusal | x + delta*) + utility_weight * NLL(benign chat)
"""

import dataclasses

from dat_jax.methods import cat
from dat_jax.training.losses import Objective


@dataclasses.dataclass(frozen=True)
class Settings(cat.Settings):
    """config.methods.self_consistency."""

    objective: Objective = dataclasses.field(default_factory=lambda: Objective(away_weight=0.0, toward_weight=1.0, toward_cutoff=0.0))


METHOD = dataclasses.replace(
    cat.METHOD,
    name="self_consistency",
    title="Self-consistency",
    paper="consistency training (arXiv 2510.27062) under CAT's attack",
    refusals="own",
    settings=Settings,
    color="",
)
DISTRIBUTIONAL = dataclasses.replace(
    METHOD,
    name="dat_self_consistency",
    title="DAT + self-consistency",
    paper="self-consistency on the prompts of DAT",
    prompts="sampled",
    group="self_consistency",
)
