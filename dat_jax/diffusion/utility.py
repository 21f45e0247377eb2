"""Sampled utility: prompts x ~ p(x | y) for the benign answers y of the chats, which widen the utility data as DAT widens the harmful.

Adversarial prompts that are sampled cover many forms. If the utility data stays as narrow as its chats are, a model learns to refuse the
forms that it has seen in harmful requests alone. The same sampler draws prompts for the chats' answers; kept are those that the target,
before any training, answers as the chat does.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from dat_jax.data.behaviors import Behavior
from dat_jax.data.chats import first_exchanges
from dat_jax.settings import check

KEEP = ("agree", "judge", "likelihood", "all")
RESPONSES = ("chat", "own")


@dataclasses.dataclass(frozen=True)
class SampledUtility:
    """The settings of sampled utility (`config.utility`); how prompts are drawn is set in `config.sampler`."""

    samples: int = 0  # prompts drawn per benign answer; 0: the utility rows are the chats alone
    answers: int = 0  # different answers of the chats that are used at most, spread evenly over the file; 0: all
    keep: str = "agree"  # agree: the target answers as the chat does, word for word | judge: it complies | likelihood | all
    threshold: float = -1.0  # of keep="likelihood": least mean log-probability of the answer under the target, nats per token
    response: str = "chat"  # what a kept prompt is trained with: chat (the answer it was drawn for) | own (the target's own answer)

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {
            "samples": (self.samples >= 0, "an integer >= 0 (0: off)"),
            "answers": (self.answers >= 0, "an integer >= 0 (0: all)"),
            "keep": (self.keep in KEEP, " | ".join(KEEP)),
            "threshold": (self.threshold <= 0, "a number <= 0, in nats per token"),
            "response": (self.response in RESPONSES, " | ".join(RESPONSES)),
        }
        check(self, key, rules)

    @property
    def asks(self) -> bool:
        """Whether the target's own answers are needed."""
        return self.keep in ("agree", "judge") or self.response == "own"


def benign_answers(chats: Sequence[Sequence[dict[str, str]]], limit: int) -> list[Behavior]:
    """Returns the chats' different answers as behaviors to sample prompts for; the text is the first prompt with that answer."""
    prompts: dict[str, str] = {}
    for prompt, answer in first_exchanges(chats):
        prompts.setdefault(answer, prompt)
    found = [Behavior(f"chat_{zlib.crc32(answer.encode()):08x}", prompt, (answer,), ()) for answer, prompt in prompts.items()]
    if not limit or limit >= len(found):
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, limit).round().astype(int)]
