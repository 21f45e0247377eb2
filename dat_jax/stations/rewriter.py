"""The rewriter: whoever writes prompts for the attacks that ask for them. A local model, an endpoint, or a file of ready rewrites.

Replies are kept in seed_<s>/rewriter/ by the content of what was asked, so a call that goes on asks for nothing twice, and neither does the
next model under attack. A reply that is empty, or the request itself, is none: the attack that asked for it stops, and says so.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dat_jax import endpoint, models, sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Ask, Attempt, Context, Stopped
from dat_jax.attacks.rewriting import same
from dat_jax.attacks.victim import BLOCKS, Decoding, Victim
from dat_jax.data import conversations, manifest
from dat_jax.data.rewrites import read_rewrites
from dat_jax.endpoint import Connection
from dat_jax.judges import refusal_prefix
from dat_jax.models import huggingface
from dat_jax.settings import read
from dat_jax.stations.inputs import Inputs, configured

ALLOWED = "one of config.rewriter.model, config.rewriter.endpoint.url and config.rewriter.file"
REFUSALS = (*refusal_prefix.OPENINGS, "sorry", "i'm sorry", "i am sorry", "i apologize")  # that a reply begins with
AGAIN = "put it back as it was, or delete the folder to ask the rewriter again"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a rewriter said, and what it cost; tokens: of prompt and reply, None where an endpoint does not say; flops: of a local model."""

    text: str
    tokens: int | None = 0
    flops: float = 0.0


Source = Callable[[Sequence[Ask]], tuple[list[Reply | None], str]]  # asks -> a reply or None for each, and what failed or ""


def check(inputs: Inputs) -> None:
    """Raises ValueError naming the key for an attack without the rewriter that it needs, before a model is loaded or an endpoint asked."""
    group = inputs.config.rewriter
    named = [key for key, value in (("model", group.model), ("endpoint.url", group.endpoint.url), ("file", group.file)) if value]
    asking = [name for name in inputs.config.evaluation.attacks if ATTACKS[name].uses_rewriter]
    if len(named) > 1:
        raise ValueError(f"config.rewriter has both {' and '.join(named)}; allowed: {ALLOWED}")
    if asking and not named:
        raise ValueError(f"config.evaluation.attacks names {asking[0]!r}, which needs a rewriter; allowed: {ALLOWED}")
    if group.endpoint.url and asking:
        endpoint.require(read(Connection, group.endpoint), "rewriter.endpoint")
    if group.file and asking:
        _check_file(inputs, asking)


def identity(inputs: Inputs) -> dict[str, Any]:
    """What replies depend on beside what is asked: the model and how it writes. A file's rewrites are known by themselves."""
    group = inputs.config.rewriter
    if group.file:
        return {"from": "a file"}
    how = {"temperature": group.temperature, "max_new_tokens": group.max_new_tokens}
    if group.endpoint.url:
        return {"url": group.endpoint.url, "name": group.endpoint.model, **how}
    return {"model": huggingface.identity(group.model), "dtype": group.dtype, **how} if group.model else {}


def ready(inputs: Inputs) -> dict[tuple[str, str], list[str]]:
    """(behavior, form) -> the rewrites of config.rewriter.file in their order; {} without a file."""
    found: dict[tuple[str, str], list[str]] = {}
    for rewrite in read_rewrites(inputs.config.rewriter.file) if inputs.config.rewriter.file else ():
        found.setdefault((rewrite.behavior, rewrite.form), []).append(rewrite.prompt)
    return found


class Rewriter:
    """The rewriter of a run of one seed; a local model is loaded when a reply is not known, and given up by `release`."""

    def __init__(self, inputs: Inputs, mesh: Any):
        """Nothing is loaded or asked yet."""
        self._inputs, self._mesh, self._folder = inputs, mesh, inputs.folder / "rewriter"
        self._source: Source | None = None
        self._known: dict[str, dict[str, Any]] | None = None  # key -> row of replies.jsonl

    def __call__(self, asks: Sequence[Ask], context: Context) -> list[str]:
        """The replies; every process must call. What they cost is counted in the context, also where they were known.

        Raises Stopped, naming the rewriter, for what cannot be asked, for an endpoint that fails, and for a reply that is none. Replies
        that came before that are kept.
        """
        keys = [manifest.of_json([self.identity, self._inputs.seed, ask.messages, ask.draw]) for ask in asks]
        if self._inputs.config.rewriter.file:  # each knows its own rewrites, and nothing is to be kept
            keys = [f"{key} {ask.behavior} {ask.form}" for key, ask in zip(keys, asks)]
        known = self._agreed(keys)
        new = {key: ask for key, ask in zip(keys, asks) if key not in known}
        todo, size = list(new), self._inputs.config.evaluation.batch_size
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            replies, failure = self._asked([new[key] for key in batch])
            found = {}
            for key, reply in zip(batch, replies):
                wrong = "" if reply is None else _wrong(reply.text, new[key])
                failure = failure or wrong
                if reply is not None and not wrong:
                    asked = {"key": key, "asked": new[key].messages, "draw": new[key].draw}
                    found[key] = asked | {"reply": reply.text, "tokens": reply.tokens, "flops": reply.flops}
            self._keep(found)
            known |= found
            if failure:
                raise Stopped(f"the rewriter, {self._name}: {failure}. What it replied before is kept, the same command goes on from there")
        for key in keys if not self._inputs.config.rewriter.file else ():
            _count(known[key], context)
        return [known[key]["reply"] for key in keys]

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See `identity`."""
        return identity(self._inputs)

    def release(self) -> None:
        """Gives up a local model's memory."""
        self._source = None

    @property
    def _name(self) -> str:
        group = self._inputs.config.rewriter
        return group.file or group.endpoint.url or group.model

    def _asked(self, asks: Sequence[Ask]) -> tuple[list[Reply | None], str]:
        if self._source is None:
            group = self._inputs.config.rewriter
            if not self._name:
                raise Stopped(f"there is no rewriter; allowed: {ALLOWED}")
            make = _of_file if group.file else _of_endpoint if group.endpoint.url else _of_model
            self._source = make(self._inputs, self._mesh)
        return self._source(asks)

    def _agreed(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What process 0 knows of these keys, on every process."""
        if self._known is None:
            self._known = _read(self._folder)
        here = {key: self._known[key] for key in keys if key in self._known}
        return json.loads(sharding.agreed_text(json.dumps(here)))

    def _keep(self, found: dict[str, dict[str, Any]]) -> None:
        """Adds replies to those that are known, and to the file; process 0 writes."""
        self._known = (self._known or {}) | found
        if found and jax.process_index() == 0 and not self._inputs.config.rewriter.file:
            entry = manifest.write_rows(self._folder / "replies.jsonl", self._known.values(), grows=True)
            manifest.write(self._folder / "replies.json", {}, {"replies.jsonl": entry})


def _read(folder: Any) -> dict[str, dict[str, Any]]:
    """The rows of replies.jsonl by their key; {} where there is none. ValueError naming the file that was damaged."""
    if not manifest.whole(folder / "replies.json", "replies.jsonl"):
        return {}
    return {row["key"]: row for row in manifest.load(folder / "replies.json", AGAIN).rows("replies.jsonl", remedy=AGAIN)}


def _wrong(text: str, ask: Ask) -> str:
    """Why a text is no reply, or ""."""
    if not text.strip():
        return f"it gave no text for behavior {ask.behavior!r}"
    if ask.unlike and same(text, ask.unlike):
        return f"it gave the request of behavior {ask.behavior!r} back as it was"
    return ""


def _count(row: dict[str, Any], context: Context) -> None:
    context.count("rewriter_calls")
    context.count("rewriter_tokens", row["tokens"] or 0)
    context.count("rewriter_flops", row["flops"])
    context.count("rewriter_refusals", row["reply"].strip().lower().startswith(REFUSALS))  # such a reply is sent like any other
    if row["tokens"] is None:
        context.count("rewriter_calls_without_tokens")


def _dialog(ask: Ask) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in ask.messages]


def _of_endpoint(inputs: Inputs, mesh: Any) -> Source:
    """A model behind config.rewriter.endpoint: process 0 alone asks, the others get its replies."""
    del mesh
    group = inputs.config.rewriter
    connection = read(Connection, group.endpoint)
    endpoint.require(connection, "rewriter.endpoint")

    def source(asks: Sequence[Ask]) -> tuple[list[Reply | None], str]:
        found: dict[str, Any] = {}
        if jax.process_index() == 0:
            replies, failure = endpoint.ask_all(connection, [_dialog(ask) for ask in asks], group.temperature, group.max_new_tokens)
            found = {"replies": [reply and [reply.text, reply.tokens] for reply in replies], "failure": str(failure or "")}
        found = json.loads(sharding.agreed_text(json.dumps(found)))
        return [Reply(*reply) if reply else None for reply in found["replies"]], found["failure"]

    return source


def _of_model(inputs: Inputs, mesh: Any) -> Source:
    """The model of config.rewriter.model, run by our own decoder; a reply depends on the seed and on what is asked alone."""
    group = inputs.config.rewriter
    how = Decoding(
        prompt_length=group.prompt_length, response_length=1, max_new_tokens=group.max_new_tokens,
        batch_size=inputs.config.evaluation.batch_size, temperature=group.temperature, perturb="user", system=None,
    )  # fmt: skip
    logging.info("rewriter: loading %s", group.model)
    model = configured(models.load(group.model, mesh=mesh, dtype=group.dtype), inputs.config.target)
    victim, most = Victim(model, how, inputs.seed, mesh), BLOCKS * group.prompt_length

    def source(asks: Sequence[Ask]) -> tuple[list[Reply | None], str]:
        attempts = []
        for ask in asks:
            ids = _encoded(model.tokenizer, _dialog(ask))
            if len(ids) > most:
                return [None] * len(asks), (
                    f"what the rewriter is asked about behavior {ask.behavior!r} has {len(ids)} tokens; allowed: {most}, {BLOCKS} times "
                    f"config.rewriter.prompt_length = {group.prompt_length}; raise that key"
                )
            attempts.append(Attempt(manifest.of_json([ask.messages, ask.draw]), ask.messages[-1][1], "", tokens=tuple(ids)))
        before = victim.spent["flops"]
        texts, flops = victim.answer(attempts), (victim.spent["flops"] - before) / max(1, len(attempts))
        said = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return [Reply(text, len(a.tokens) + tokens, flops) for text, tokens, a in zip(texts, said, attempts)], ""

    return source


def _encoded(tokenizer: Any, dialog: list[dict[str, str]]) -> list[int]:
    """The ids of a conversation; where the chat template knows no system's turn, its words stand in front of the user's first ones."""
    conversations.check_tokenizer(tokenizer)
    try:
        return conversations.encode_prompt(tokenizer, dialog, "all")[0]
    except ValueError:
        if dialog[0]["role"] != "system":
            raise
    system, first, *rest = dialog
    return conversations.encode_prompt(tokenizer, [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest], "all")[0]


def _of_file(inputs: Inputs, mesh: Any) -> Source:
    """Ready rewrites of config.rewriter.file."""
    del mesh
    found = ready(inputs)

    def source(asks: Sequence[Ask]) -> tuple[list[Reply | None], str]:
        texts = [found.get((ask.behavior, ask.form), [])[ask.draw : ask.draw + 1] for ask in asks]
        lacking = [ask for ask, text in zip(asks, texts) if not text]
        failure = f"no rewrite {lacking[0].draw + 1} of the form {lacking[0].form!r} of behavior {lacking[0].behavior!r}" if lacking else ""
        return [Reply(text[0]) if text else None for text in texts], failure

    return source


def _check_file(inputs: Inputs, asking: Sequence[str]) -> None:
    """Raises ValueError for an attack that no file can serve, for the first rewrite that is not there, and for one that is the request."""
    file, found = inputs.config.rewriter.file, ready(inputs)
    for name in asking:
        attack = ATTACKS[name]
        if attack.asks is None:
            allowed = "config.rewriter.model or config.rewriter.endpoint.url"
            raise ValueError(f"config.evaluation.attacks names {name!r}, which converses with the rewriter; allowed: {allowed}")
        settings = attack.read_settings(inputs.config)
        for form in attack.variants(settings, ()):
            for ask in attack.asks(inputs.eval_behaviors, Context(inputs.seed, settings, form)):
                texts = found.get((ask.behavior, form), [])
                if ask.draw >= len(texts):
                    raise ValueError(
                        f"config.rewriter.file {file} has {len(texts)} rewrites {form!r} of behavior {ask.behavior!r}; allowed: as many as "
                        f"config.attacks.{attack.key}.tries, for each of the behaviors that are tried"
                    )
                if wrong := _wrong(texts[ask.draw], ask):
                    raise ValueError(f"config.rewriter.file {file}, form {form!r}: {wrong}; allowed: other words")
