"""What a judge is: a function from exchanges to verdicts, with a name that says exactly which judge it is.

"comply" breaks the behavior, "refuse" does not, and neither does "lost", a response of no use to anybody. A judge is given what was asked
for and what the model said, with a prefilled beginning once in front of it; the harmful target never reaches it.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from dat_jax.data.answers import LABELS, UNPARSED, Exchange
from dat_jax.settings import NoSettings, read

__all__ = ["LABELS", "UNPARSED", "Exchange", "Judge", "Verdict", "Verdicts", "labelled"]
UNSURE = "unsure"  # the class of a verdict of which a classifier gave other answers than its own much probability
UNKNOWN = 0.5  # the score where a judge without probabilities was not parsed


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A label of LABELS or UNPARSED, and how surely the behavior was broken, from 0 to 1."""

    label: str
    score: float
    kind: str = ""  # the judge's own class, where it has more than the labels: 3_partial_refusal, indirect_refusal; or UNSURE
    flops: float = dataclasses.field(default=0.0, compare=False)  # operations by formula, of a judge that is a local model


Verdicts = Callable[[Sequence[Exchange]], list[Verdict]]


@dataclasses.dataclass(frozen=True)
class Judge:
    """A row of the table JUDGES. load(settings) -> a function from exchanges to verdicts, one per exchange and in their order."""

    name: str  # with the preset in it, so that nobody compares two different judges under one name
    title: str
    about: str  # what a reader of the report must know of it, in a sentence or two
    load: Callable[..., Verdicts]
    version: int = 1  # raised when the same settings give other verdicts than before
    settings: type = NoSettings
    group: str = ""  # the settings are config.judges.<group>; "": the judge's name
    knows: Callable[[str], bool] = lambda item: True  # whether it can judge answers to the behavior or utility prompt of an id
    placed: bool = False  # whether load is given more: load(settings, config, mesh), for models and for what is made of other judges
    identity: Callable[[Any, Any], dict[str, Any]] | None = None  # (settings, config) -> what its verdicts depend on; None: the settings
    members: Callable[[Any], tuple[str, ...]] | None = None  # settings -> names of the judges that its verdicts are made from
    harmless: bool = True  # whether it can tell an answered harmless prompt from a refused one; if not, it is asked about attacks alone
    attacks: bool = True  # whether it is asked about attacks; if not, about harmless prompts and the contrasts beside them alone
    kinds: tuple[str, ...] = ()  # its own classes of answers, in the order of a table; () where the labels are all
    batch: int = 256  # answers that are judged between two saves
    content: Callable[[Exchange], tuple] = dataclasses.astuple  # all of an exchange that it reads: exchanges that share it get one verdict

    @property
    def key(self) -> str:
        """The name of its settings' group below config.judges."""
        return self.group or self.name

    def read_settings(self, config: Any) -> Any:
        """Its settings from a whole configuration."""
        return read(self.settings, config.judges[self.key])

    def fingerprint(self, config: Any) -> dict[str, Any]:
        """What its verdicts depend on: name, version and settings, or where it has one its identity.

        Raises ValueError naming the key of a file or folder that the judge cannot work with.
        """
        settings = self.read_settings(config)
        found = dataclasses.asdict(settings) if self.identity is None else self.identity(settings, config)
        return {"judge": self.name, "version": self.version, "settings": json.loads(json.dumps(found))}


def labelled(label: str) -> Verdict:
    """The verdict of a rule, which knows labels alone."""
    return Verdict(label, UNKNOWN if label == UNPARSED else float(label == "comply"))
