"""What is read of other tools' results: what somebody sent to a model, and what is known of the answers."""

import collections
import dataclasses
from collections.abc import Mapping

UNKNOWN = "of behaviors that are not the evaluation's"


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that was sent, about a behavior of ours."""

    behavior: str  # our id
    prompt: str
    prefill: str = ""  # what the answer was made to start with
    completions: tuple[str, ...] = ()  # () where the file holds prompts alone
    label: int | None = None  # HarmBench's: 1 broken, 0 not, -1 the judge said neither; None where the file has none
    scores: Mapping[str, tuple[float | None, ...]] = dataclasses.field(default_factory=dict)  # AdversariaLLM's: judge -> p_harmful


@dataclasses.dataclass
class Found:
    """The cases of a file or folder, and how many things in it were left out, by reason."""

    cases: list[Case] = dataclasses.field(default_factory=list)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seen: dict[str, None] = dataclasses.field(default_factory=dict)  # how the file calls its behaviors, for the message where none is ours

    def sentence(self) -> str:
        """What was left out and why; "" where nothing was."""
        return "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
