"""What an attack is: a function from behaviors, the model under attack and a context to attempts, and the access that it needs.

An attack looks at nothing but its arguments, works on a batch of behaviors at a time and returns what is to be tried; answering and judging
are other stations' work. An adaptive attack may use the victim's gradients and answers, the judge and the rewriter, and keep its progress
in the store, so that a killed run goes on within the attack.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dat_jax.data.rewrites import Rewrite
from dat_jax.settings import NoSettings, read

# What an attacker must reach, the weaker access first. "text": the user's turn; "prefill": the beginning of the answer; "embedding": the
# embeddings of the prompt; "latent": the residual stream; "weights": the weights themselves.
SURFACES = ("text", "prefill", "embedding", "latent", "weights")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One thing to try on a model: a prompt, what the answer is made to start with, and the response that an optimizing attack raises.

    suffix: the end of the prompt to which a perturbation is confined; "": it reaches all that config.data.perturb allows.
    target_eot: whether the end of the turn belongs to the target; if so, what an attack raises is to say the target and then stop.
    tokens: the whole prompt as ids of the victim's tokenizer, chat template included, in place of `prompt`, which then is for readers.
    temperature: of the answer; None: config.evaluation.temperature.
    delta: perturbations PxD of the prompt block by site (0: its embeddings, k: the residual stream before layer k), the last row at the
    prompt's last token; None: none.
    """

    behavior: str
    prompt: str
    target: str
    prefill: str = ""
    suffix: str = ""
    target_eot: bool = True
    tokens: tuple[int, ...] = ()
    temperature: float | None = None
    delta: Mapping[int, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a rewriter is asked: a conversation that it is to go on with, and which of the behavior's rewrites the reply will be.

    behavior, form: what a file of ready rewrites is searched for; form "": no file can have it.
    draw: the same conversation with another number gets another reply, where the rewriter's temperature is above 0.
    unlike: a text that is no rewrite of itself, the request; "": any reply that is not empty will do.
    """

    behavior: str
    form: str
    messages: tuple[tuple[str, str], ...]  # of (role, text), the last one the user's
    draw: int = 0
    unlike: str = ""


class Stopped(ValueError):
    """Why one attack cannot go on, such as a rewriter that fails; the other ones go on."""


class Store(Protocol):
    """Where an attack keeps its progress on the batch of behaviors at hand."""

    def load(self) -> dict[str, np.ndarray]:
        """Returns what was saved last for these behaviors by an interrupted call; {} at first."""

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Replaces what was saved, at once: a kill leaves the old or the new."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an attack gets beside behaviors and victim."""

    seed: int  # of the run
    settings: Any = None  # the attack's own, config.attacks.<group>
    variant: str = ""  # one of Attack.variants
    rewrites: Sequence[Rewrite] = ()
    given: Sequence[Attempt] = ()  # for an attack that says where its attempts are given from
    judge: Callable[..., Any] | None = None  # exchanges -> verdicts, see judges/judge.py; for attacks that say uses_judge
    rewriter: Callable[[Sequence[Ask]], list[str]] | None = None  # asks -> texts, see stations/rewriter.py; for attacks that uses_rewriter
    sampler: Callable[[], tuple[Any, Any]] | None = None  # -> the masked-diffusion LM and its Pool; for attacks that say uses_sampler
    store: Store | None = None
    spent: dict[str, float] = dataclasses.field(default_factory=dict)  # what the attack cost so far, and what else it counts, by name

    def count(self, name: str, number: float = 1) -> None:
        """Adds to what is written as the attack's cost under a name, such as replies that were of no use."""
        self.spent[name] = self.spent.get(name, 0) + number


def once(settings: Any, forms: Sequence[str]) -> Sequence[str]:
    """The variants of an attack that has no variants."""
    del settings, forms
    return ("",)


@dataclasses.dataclass(frozen=True)
class Attack:
    """A row of the table ATTACKS.

    attempts(behaviors, victim, context) -> list of Attempt, those of a behavior together; a behavior without any is not counted. Raises
    Stopped where this attack cannot go on, and others can.
    variants(settings, forms) -> names: the attack is run, reported and stored once per name, "" standing for none. forms: the rewrites'.
    """

    name: str
    title: str  # as the report writes it, in front of the variant's name
    surface: str  # one of SURFACES
    attempts: Callable[..., list[Attempt]]
    settings: type = NoSettings
    group: str = ""  # the settings are config.attacks.<group>; "": the attack's name
    adaptive: bool = False  # whether the attempts depend on the model under attack
    tries: bool = False  # whether its attempts on a behavior are tries of one kind: the report draws success over their number
    uses_judge: bool = False  # whether context.judge steers it: its answers then depend on the judge
    uses_target: bool = False  # whether the behavior's target steers it: the report says so where targets were made from the behaviors
    raises: bool = False  # whether it makes the target itself likely, where the judge is given what follows a target that is no answer
    uses_rewriter: bool = False  # whether context.rewriter writes its prompts: its answers then depend on the rewriter
    uses_sampler: bool = False  # whether context.sampler draws its prompts: it is then in memory beside the model under attack
    together: bool = False  # whether it is given all behaviors at once: none is answered before all of its attempts are made
    asks: Callable[..., list[Ask]] | None = None  # (behaviors, context) -> what it asks the rewriter, where no model's answers decide that
    variants: Callable[[Any, Sequence[str]], Sequence[str]] = once
    # Where its attempts come from when they are ready before it starts, one of stations/given.py. "answers": answers of the same model to
    # other attacks, one variant for each
    given: str = ""
    choices: tuple[str, ...] = ()  # settings that say which variants there are: answers do not depend on them, so they may change
    curve: str = ""  # what the variants are numbers of: the report draws success over it, and no worst case counts them

    @property
    def key(self) -> str:
        """The name of its settings' group below config.attacks."""
        return self.group or self.name

    def read_settings(self, config: Any) -> Any:
        """Its settings from a whole configuration."""
        return read(self.settings, config.attacks[self.key])
