"""Test cases and results of other tools, read as what may be sent to a model: HarmBench's files and AdversariaLLM's run.json."""

from collections.abc import Sequence

from etils import epath

from dat_jax.data import files
from dat_jax.data.behaviors import Behavior
from dat_jax.data.cases import adversariallm, harmbench
from dat_jax.data.cases.case import UNKNOWN, Case, Found

ALLOWED = "a test_cases.json, completions or results file of HarmBench, a run.json of AdversariaLLM, or a folder of run.json files"


def read_cases(path: str, behaviors: Sequence[Behavior]) -> tuple[list[Case], str]:
    """Returns the cases of a file, or of every run.json below a folder, and a sentence on what was left out, "" where nothing was.

    The two tools are told apart by the content, and keys that are not known are passed over. Behaviors are matched by id (HarmBench) or
    by the text of the original prompt (AdversariaLLM).

    Raises ValueError naming the file: for what is not JSON or has another shape, where no behavior is one of these, and where nothing of
    them can be sent as text.
    """
    ids = {behavior.id: behavior.id for behavior in behaviors}
    texts = {" ".join(behavior.text.split()): behavior.id for behavior in behaviors}
    found, place = Found(), epath.Path(path)
    folder = place.exists() and place.is_dir()
    named = _runs(place) if folder else [path]
    if not named:
        raise ValueError(f"{path}: no run.json in that folder; allowed: {ALLOWED}")
    for name in named:
        content = files.read_json(name)
        if adversariallm.matches(content):
            adversariallm.read(name, content, texts, found)
        elif harmbench.matches(content) and not folder:
            harmbench.read(name, content, ids, found)
        else:
            known = f"an object with {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
            raise ValueError(
                f"{name}: found {known}; allowed: HarmBench's {harmbench.SHAPE}, or AdversariaLLM's run.json {adversariallm.SHAPE}"
            )
    if not found.cases:
        _complain(path, found, behaviors)
    return found.cases, found.sentence()


def _runs(folder: epath.Path) -> list[str]:
    """Every run.json below a folder; a bucket has no pattern for that."""
    entries = sorted(folder.iterdir())
    below = [name for entry in entries if entry.is_dir() for name in _runs(entry)]
    return [str(entry) for entry in entries if entry.name == "run.json"] + below


def _complain(path: str, found: Found, behaviors: Sequence[Behavior]) -> None:
    """Raises the ValueError of a file without any case."""
    if found.left_out.keys() - {UNKNOWN}:
        raise ValueError(f"{path}: nothing in it can be sent as text: {found.sentence()}; allowed: texts of the evaluation's behaviors")
    seen = ", ".join(repr(name)[:80] for name in list(found.seen)[:3])
    ours = f"e.g. {behaviors[0].id!r} or {behaviors[0].text!r:.80}" if behaviors else "of which there is none"
    none = f"{path}: none of its {len(found.seen)} behaviors is the evaluation's"
    raise ValueError(f"{none}; found: {seen or 'nothing'}; allowed: its ids or texts, {ours}")
