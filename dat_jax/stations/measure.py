"""Likelihoods: of harmful targets after direct requests, of held-out chats, and of the choices of multiple-choice questions.

One file each per model, beside the answers, with the same manifest: what is measured is not measured again, and what is added is.

    measures/<subject>/harmful.jsonl       per behavior and target: nll (nats, summed over the tokens), tokens
    measures/<subject>/chats.jsonl         per chat: nll and tokens of its last answer, kl: KL(original || model) summed over the tokens
    measures/<subject>/task-<name>.jsonl   per question: log_likelihoods of the choices, and whether the best one is the answer
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from dat_jax.attacks import scoring
from dat_jax.attacks.victim import BLOCKS, Victim
from dat_jax.data import answers as answers_lib
from dat_jax.data import conversations, provenance, tasks
from dat_jax.data.answers import Line, checksum
from dat_jax.data.behaviors import Behavior
from dat_jax.data.conversations import Dialog
from dat_jax.models.huggingface import Model
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import content, identity

SAVED = 8  # batches of items between two saves
Original = Callable[[], Model]  # loads the model as it came, once


@dataclasses.dataclass(frozen=True)
class Measure:
    """One file of likelihoods: what is measured of one model."""

    name: str
    file: str  # below measures/<subject>, without suffix
    about: dict[str, Any]
    items: dict[str, Any]  # id -> behavior, chat or question
    checksums: dict[str, str]  # id -> of what is measured
    lines: Callable[[dict[str, Any], Victim, Original], list[Line]]  # (items by id, victim, original) -> lines with an id or behavior

    def of_model(self, identity: str) -> "Measure":
        """The same, its file made with a certain model."""
        return dataclasses.replace(self, about=self.about | {"made_with": self.about["made_with"] | {"model": identity}})


def plan(inputs: Inputs, subject: str) -> list[Measure]:
    """Every measure that config.evaluation.measures names and that there are files for."""
    wanted, begin = inputs.config.evaluation.measures, {"method": subject, "seed": inputs.seed}
    given = [behavior for behavior in inputs.eval_behaviors if not behavior.made_target]
    found = [_harmful(inputs, given, begin)] if "harmful" in wanted and given else []
    found += [_chats(inputs, begin)] if inputs.heldout_chats else []
    return found + [_task(inputs, name, questions, begin) for name, questions in inputs.tasks.items()]


def measure(job: Measure, missing: Sequence[str], folder: epath.Path, victim: Victim, weights: str, original: Original, name: str) -> None:
    """Measures what is missing, and saves every few batches."""
    found = answers_lib.read(folder / job.file)
    if found.about:
        remedy = "it holds likelihoods under other weights; delete it to measure again, or use another --workdir"
        provenance.compare(f"{found.stem}.json", {"weights": found.about["weights"]}, {"weights": weights}, remedy)
    cost = {"flops": 0.0, "seconds": 0.0} | found.about.get("cost", {})
    found.about = job.about | {"weights": weights, "asked": list(job.items), "done": dict(found.done)}
    rank, size = {item: place for place, item in enumerate(job.items)}, SAVED * victim.decoding.batch_size
    for start in range(0, len(missing), size):
        batch, before, started = missing[start : start + size], victim.spent["flops"], time.monotonic()
        found.lines += [job.about["begin"] | line for line in job.lines({item: job.items[item] for item in batch}, victim, original)]
        found.lines.sort(key=lambda line: rank.get(answers_lib.item_of(line), len(rank)))
        found.about["done"] |= {item: job.checksums[item] for item in batch}
        spent = {"flops": victim.spent["flops"] - before, "seconds": round(time.monotonic() - started, 2)}
        cost = {kind: cost[kind] + spent[kind] for kind in cost}
        found.about["cost"] = cost
        answers_lib.write(found)
        if len(missing) > size:
            logging.info("%s: %d/%d measured", name, min(start + size, len(missing)), len(missing))


def _harmful(inputs: Inputs, behaviors: Sequence[Behavior], begin: Line) -> Measure:
    def lines(items: dict[str, Behavior], victim: Victim, original: Original) -> list[Line]:
        del original
        pairs = [(behavior, target) for behavior in items.values() for target in behavior.targets]
        dialogs = [_dialog([{"role": "user", "content": b.text}, {"role": "assistant", "content": t}], inputs) for b, t in pairs]
        encoded = [_encoded(victim.model.tokenizer, dialog) for dialog in dialogs]
        sums = scoring.response_sums(victim, None, *zip(*encoded))
        counts = [min(len(response), victim.decoding.response_length) for _, response in encoded]
        return [{"behavior": b.id, "nll": nll, "tokens": n} for (b, _), (nll, _), n in zip(pairs, sums, counts)]

    about = {"measure": "harmful", "begin": begin | {"measure": "harmful"}, "made_with": {"measure": "harmful", **_how(inputs)}}
    checksums = {b.id: checksum(b.text, list(b.targets)) for b in behaviors}
    return Measure("harmful", "harmful", about, {b.id: b for b in behaviors}, checksums, lines)


def _chats(inputs: Inputs, begin: Line) -> Measure:
    items = {str(number): chat for number, chat in enumerate(inputs.heldout_chats)}

    def lines(chosen: dict[str, Dialog], victim: Victim, original: Original) -> list[Line]:
        encoded = {item: _encoded(victim.model.tokenizer, _dialog(chat, inputs)) for item, chat in chosen.items()}
        longest = BLOCKS * victim.decoding.prompt_length
        kept = {item: pair for item, pair in encoded.items() if len(pair[0]) <= longest}
        if len(kept) < len(encoded):
            logging.warning("held-out chats: left out %d with prompts of more than %d tokens", len(encoded) - len(kept), longest)
        if not kept:
            return []
        found = original()
        same = found.config == victim.model.config  # of other sizes or another family: there is no divergence to speak of
        sums = scoring.response_sums(victim, found if same else None, *zip(*kept.values()))
        counts = [min(len(response), victim.decoding.response_length) for _, response in kept.values()]
        return [{"id": item, "nll": nll, "kl": kl if same else None, "tokens": n} for item, (nll, kl), n in zip(kept, sums, counts)]

    made_with = {"measure": "chats", "original": content(identity(inputs.config.target.model)), **_how(inputs)}
    about = {"measure": "chats", "begin": begin | {"measure": "chats"}, "made_with": made_with}
    return Measure("held-out chats", "chats", about, items, {item: checksum(chat) for item, chat in items.items()}, lines)


def _task(inputs: Inputs, name: str, questions: Sequence[tasks.Question], begin: Line) -> Measure:
    count, examples = inputs.config.evaluation.few_shot, inputs.examples.get(name, [])

    def shown(question: tasks.Question) -> list[tasks.Question]:
        return tasks.examples_of(question, examples, count) if count else []

    def lines(items: dict[str, tasks.Question], victim: Victim, original: Original) -> list[Line]:
        del original
        pairs = [
            tasks.encode(victim.model.tokenizer, before, f" {choice}")
            for question in items.values()
            for before in [tasks.context(question, shown(question))]
            for choice in question.scored
        ]
        scores, found = iter(scoring.log_likelihoods(victim, pairs)), []
        for item, question in items.items():
            own = [next(scores) for _ in question.scored]
            line = {"id": item, "subject": question.subject, "answer": question.answer, "log_likelihoods": own}
            found.append(line | tasks.correct(question, own))
        return found

    about = {"measure": "task", "task": name, "begin": begin | {"measure": "task", "task": name}}
    about["made_with"] = {"measure": f"task {name}", "few_shot": count}
    checksums = {q.id: checksum(tasks.context(q, shown(q)), list(q.scored), q.answer) for q in questions}
    return Measure(f"task {name}", f"task-{name}", about, {q.id: q for q in questions}, checksums, lines)


def _how(inputs: Inputs) -> dict[str, Any]:
    return {"system": inputs.decoding.system, "response_length": inputs.decoding.response_length}


def _dialog(chat: Dialog, inputs: Inputs) -> list[dict[str, str]]:
    return conversations.with_system(chat, inputs.decoding.system)


def _encoded(tokenizer: Any, dialog: Dialog) -> tuple[list[int], list[int]]:
    """The ids of a conversation up to its last answer, and of that."""
    return conversations.encode_prompt(tokenizer, dialog[:-1], "all")[0], conversations.encode_response(tokenizer, dialog)
