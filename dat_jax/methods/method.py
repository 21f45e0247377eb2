"""What a method is: where its prompts come from, its inner maximisation and its loss; the train step knows no more of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dat_jax.settings import LARGEST_INTEGER, NoSettings, read

# Nothing is trained | the behaviors' own requests | these and their rewrites, see `share` | selected samples of the diffusion LM.
PROMPTS = ("none", "requests", "rewrites", "sampled")
REFUSALS = ("given", "own")  # the behaviors' refusals | the target's own answers to the requests, where these are refusals


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What a step's cost depends on beside the model and the method: tokens of the two blocks, rows of each kind, LoRA's rank."""

    prompt: int
    response: int
    adversarial: int
    utility: int
    rank: int


@dataclasses.dataclass(frozen=True)
class Term:
    """A number that a method writes to metrics.jsonl at every step, and how the report draws it."""

    key: str
    title: str
    meaning: str
    said: bool = False  # whether the lines of progress show it


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table METHODS. Hashable, as `inner` and `loss` are static arguments of the train step.

    inner(network, batch, key, settings) -> training.network.Found: the perturbation and what it did. None: rows are not perturbed.
    loss(network, reference, batch, found, key, settings) -> (loss, metrics): differentiated with respect to the network's weights.
    memory(settings, Model, seed) -> arrays that checkpoints have: `inner` gets them as network.memory, and returns the next ones in Found.
    """

    name: str
    title: str  # as the report writes it
    paper: str = ""  # what an exported model's card says of it
    prompts: str = "none"  # one of PROMPTS
    refusals: str = "given"  # one of REFUSALS
    settings: type = NoSettings
    group: str = ""  # the settings are config.methods.<group>; "": the method's name. Methods that must not drift apart share one
    inner: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    flops: Callable[..., dict[str, float]] | None = None  # (ModelConfig, settings, StepShape) -> operations of a step by scope, by formula
    about: Callable[[Any], str] = lambda settings: ""  # settings -> what a line on its step says of them
    terms: tuple[Term, ...] = ()
    needs_reference: Callable[[Any], bool] = lambda settings: False  # whether the loss looks at the weights as they were before training
    updates: Callable[[Any], int] = lambda settings: 1  # settings -> updates of the weights for each inner maximisation
    memory: Callable[[Any, Any, int], Any] = lambda settings, model, seed: ()  # what it keeps from step to step, before the first: arrays
    share: Callable[[Any], float] = lambda settings: 0.5  # settings -> of rewrites among its rows, where its prompts are rewrites
    suffixes: bool = False  # whether it writes behind the users' words, which the rows must then tell from all others
    color: str = ""  # in the report's figures; "": one of the palette's

    @property
    def key(self) -> str:
        """The name of its settings' group below config.methods."""
        return self.group or self.name

    def steps(self, model: Any, config: Any) -> int:
        """Steps of a training: config.training.steps, or as many as config.training.flops pays for, by formula and for a ModelConfig.

        Raises ValueError naming the key where that is not even one step, or the method does not count its operations.
        """
        budget, needed = config.training.flops, sum(self.step_flops(model, config).values()) if self.trains else 0.0
        if not budget or not self.trains:
            return config.training.steps
        if not needed:
            raise ValueError(f"config.training.flops is {budget:g}, and {self.name} does not count its operations; allowed: 0, or other "
                             "config.training.methods")  # fmt: skip
        if not needed <= budget < LARGEST_INTEGER * needed:
            raise ValueError(f"config.training.flops is {budget:g}; allowed: 0, or {needed:.4g} (one step of {self.name}) up to "
                             f"{LARGEST_INTEGER * needed:.4g}")  # fmt: skip
        return int(budget // needed)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.prompts != "none"

    def read_settings(self, config: Any) -> Any:
        """Its settings from a whole configuration."""
        return read(self.settings, config.methods[self.key])

    def step_flops(self, model: Any, config: Any) -> dict[str, float]:
        """Operations of one training step by scope, for a ModelConfig and a whole configuration; {} where it is not known."""
        if self.flops is None:
            return {}
        data = config.data
        rows = (data.adversarial_rows, data.utility_rows, config.training.lora.rank)
        return self.flops(model, self.read_settings(config), StepShape(data.prompt_length, data.response_length, *rows))
