"""GCG: a suffix of the request, found token by token with the model's gradients (Zou et al., arXiv 2307.15043).

A step takes the gradient of the loss with respect to the suffix's one-hot tokens. Candidates replace tokens of the suffix by some of those
that the gradient favors. The step goes on from the candidate of the lowest loss; the best suffix of all steps is what is sent. The defaults
are those of nanoGCG 0.3.0. What differs from it, and why:

* A candidate counts only if its text, in the whole rendered chat, is split into the very tokens that are scored. nanoGCG looks at the
  suffix alone and misses tokens that join over its ends.
* A step without such a candidate keeps its suffix and is counted. In nanoGCG it ends the search with an error.
* Every loss is a whole forward pass. A cache of the prompt's beginning changes losses (nanoGCG's issue 22).
* The end of the turn belongs to the target, as it does everywhere here.
* The suffix that the search starts from may be the best one.
* The best suffix is scored once more as text. One that does not give the search's tokens and loss gives way to the best one before it.
"""

import dataclasses
import functools
import itertools
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dat_jax.attacks.attack import Attack, Attempt, Context
from dat_jax.attacks.victim import Victim, lay_out
from dat_jax.data import conversations
from dat_jax.data.behaviors import Behavior
from dat_jax.data.conversations import Conversations
from dat_jax.models import flops
from dat_jax.settings import check
from dat_jax.training.suffixes import admissible, favored_tokens, suffix_losses

SAVE_EVERY = 10  # steps between two saved states
TOLERANCE = 0.01  # nats per token by which two passes over the same tokens may differ in bfloat16


@dataclasses.dataclass(frozen=True)
class Settings:
    """config.attacks.gcg; the loss is nll(target) - refusal_weight * nll(refusal), each a mean over tokens, in nats."""

    steps: int = 250  # per behavior (the paper has 500)
    candidates: int = 512  # drawn per step; those that repeat or that text cannot send are not evaluated
    topk: int = 256  # tokens per place of the suffix that candidates are drawn from
    replaced: int = 1  # tokens of the suffix that a candidate replaces
    suffix: str = "x x x x x x x x x x x x x x x x x x x x"  # where the search starts; put behind the request, after a space
    batch_size: int = 64  # candidates evaluated at a time
    ascii_only: bool = True  # whether only tokens of printable ASCII are drawn
    refusal_weight: float = 0.0  # above 0 the refusal is made unlikely, too: for a model known to have been trained towards it
    refusal: str = ""  # the refusal that is made unlikely; "": the behavior's first one

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        counts = ("candidates", "topk", "replaced", "batch_size")
        rules = {"steps": (self.steps >= 0, "an integer >= 0")}
        rules |= {name: (getattr(self, name) >= 1, "an integer >= 1") for name in counts}
        rules["suffix"] = (self.suffix != "" and self.suffix == self.suffix.strip(), "some text without blanks at its ends")
        rules["refusal_weight"] = (self.refusal_weight >= 0, "a number >= 0")
        check(self, key, rules)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request with the suffix that the search starts from, as the model reads it."""

    behavior: Behavior
    prompt: str  # request + " " + suffix
    head: str  # what of the prompt stands before the text of the suffix's tokens
    ids: np.ndarray  # of the whole rendered chat
    places_S: np.ndarray  # which of them are the suffix's
    rows: Conversations  # one row, the response is the target
    refused: Conversations | None  # the same with the refusal as response; None where it does not count

    @property
    def suffix_S(self) -> np.ndarray:
        """The ids that the search starts from."""
        return self.ids[self.places_S]

    def text(self, tokenizer: Any, suffix_S: np.ndarray) -> str:
        """What a user types to send a suffix."""
        if np.array_equal(suffix_S, self.suffix_S):
            return self.prompt
        return self.head + _decoded(tokenizer, suffix_S)


@dataclasses.dataclass(frozen=True)
class Progress:
    """A search after some steps."""

    current_S: np.ndarray  # the suffix that the next step starts from
    bests_NxS: np.ndarray  # every suffix that was the best of the search, the latest one last
    losses: tuple[float, ...]  # of the best suffix, at the start and after every step
    unchanged: int = 0  # steps none of whose candidates could be sent as text

    @property
    def best_S(self) -> np.ndarray:
        """The best suffix."""
        return self.bests_NxS[-1]

    @property
    def best_losses(self) -> list[float]:
        """The losses of all suffixes that were the best."""
        return [self.losses[0], *(after for before, after in itertools.pairwise(self.losses) if after < before)]


def attempts(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> list[Attempt]:
    """Appends to each request the suffix that makes its target likeliest; the behaviors are searched one after the other."""
    allowed_V = admissible(victim.model, context.settings.ascii_only)
    prompts, progress = _load(behaviors, victim, context)
    for behavior in behaviors[len(prompts) :]:
        save = functools.partial(_save, behaviors, victim, context, list(prompts))
        chat = begin(behavior, victim, context.settings)
        progress = search(chat, victim, context, allowed_V, progress, save)
        prompt, passed_over = confirmed(chat, victim, context.settings, progress)
        prompts.append(prompt)
        context.count("suffixes_passed_over", passed_over)
        first, last = progress.losses[0], progress.losses[-1]
        logging.info("gcg, %s: loss %.3f, from %.3f; %d steps without a candidate", behavior.id, last, first, progress.unchanged)
        progress = None
        _save(behaviors, victim, context, prompts, progress)
    return [Attempt(behavior.id, prompt, behavior.targets[0]) for behavior, prompt in zip(behaviors, prompts)]


def search(
    chat: Chat, victim: Victim, context: Context, allowed_V: np.ndarray, progress: Progress | None = None,
    save: Callable[[Progress], None] = lambda progress: None,
) -> Progress:  # fmt: skip
    """Takes the steps that are left; step k depends on (seed, behavior id, k), the suffix before it and the model, and on nothing else.

    allowed_V: which tokens may be drawn. save: called every few steps.
    """
    settings, tokenizer = context.settings, victim.model.tokenizer
    if progress is None:
        progress = Progress(chat.suffix_S, chat.suffix_S[None], tuple(losses_of(chat, victim, settings, chat.suffix_S[None]).tolist()))
    for step in range(len(progress.losses) - 1, settings.steps):
        generator = np.random.default_rng([context.seed, zlib.crc32(chat.behavior.id.encode()), step])
        favored_SxK = favored(chat, victim, settings, progress.current_S, allowed_V)
        drawn_CxS = draw(progress.current_S, favored_SxK, settings.candidates, settings.replaced, generator)
        sent_CxS = sendable(chat, tokenizer, victim.decoding.system, drawn_CxS)
        if len(sent_CxS):
            losses_C = losses_of(chat, victim, settings, sent_CxS)
            lowest = np.argmin(np.where(np.isnan(losses_C), np.inf, losses_C))
            current_S, loss = sent_CxS[lowest], float(losses_C[lowest])
            better = loss < progress.losses[-1]
            bests_NxS = np.concatenate([progress.bests_NxS, current_S[None]]) if better else progress.bests_NxS
            progress = Progress(current_S, bests_NxS, (*progress.losses, loss if better else progress.losses[-1]), progress.unchanged)
        else:
            losses = (*progress.losses, progress.losses[-1])
            progress = dataclasses.replace(progress, losses=losses, unchanged=progress.unchanged + 1)
        if (step + 1) % SAVE_EVERY == 0:
            save(progress)
    return progress


def begin(behavior: Behavior, victim: Victim, settings: Settings) -> Chat:
    """Lays a request out with the settings' suffix; ValueError when it adds fewer tokens than a candidate replaces."""
    tokenizer, system, prompt = victim.model.tokenizer, victim.decoding.system, f"{behavior.text} {settings.suffix}"
    rows, refused = _laid_out(behavior, prompt, victim, settings)
    ids, of_user = _encoded(tokenizer, prompt, system)
    without, _ = _encoded(tokenizer, behavior.text, system)
    shared = next((place for place, (a, b) in enumerate(zip(ids, without)) if a != b), len(without))
    places_S = np.array([place for place, users in enumerate(of_user) if users and place >= shared], int)
    if len(places_S) < settings.replaced:
        allowed = f"at most the {len(places_S)} tokens that config.attacks.gcg.suffix adds to the request of behavior {behavior.id!r}"
        raise ValueError(f"config.attacks.gcg.replaced is {settings.replaced}; allowed: {allowed}")
    spelled = _decoded(tokenizer, np.array(ids)[places_S])
    # Some tokenizers decode the blank before the suffix with its first token, some do not.
    head = prompt.removesuffix(spelled if prompt.endswith(spelled) else settings.suffix)
    return Chat(behavior, prompt, head, np.array(ids), places_S, rows, refused)


def confirmed(chat: Chat, victim: Victim, settings: Settings, progress: Progress) -> tuple[str, int]:
    """Returns the prompt of the best suffix whose text, encoded and scored once more as any prompt is, gives the search's tokens and loss.

    Also how many better ones were passed over. Where none does, as after a change of the weights, it is the one of the lowest loss as text.
    """
    scored: list[tuple[float, str]] = []
    for passed_over, (suffix_S, expected) in enumerate(zip(progress.bests_NxS[::-1], progress.best_losses[::-1])):
        prompt = chat.text(victim.model.tokenizer, suffix_S)
        try:
            typed = _laid_out(chat.behavior, prompt, victim, settings)
        except ValueError as error:  # the chat template rewrites it
            logging.warning("gcg, %s: a suffix cannot be sent, and an earlier one is taken: %s", chat.behavior.id, error)
            continue
        (loss,) = _losses(typed, victim, settings)
        same = np.array_equal(typed[0].tokens_BxT, _rows(chat, victim, suffix_S[None])[0].tokens_BxT)
        if same and np.isclose(loss, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            return prompt, passed_over
        what = f"has loss {loss:.4f} as text and {expected:.4f} in the search" if same else "is split into other tokens than were scored"
        logging.warning("gcg, %s: a suffix %s; an earlier one is taken", chat.behavior.id, what)
        scored.append((float(np.nan_to_num(loss, nan=np.inf)), prompt))
    return min(scored)[1], len(progress.bests_NxS)


def _laid_out(behavior: Behavior, prompt: str, victim: Victim, settings: Settings) -> tuple[Conversations, Conversations | None]:
    """One row of a prompt with the target as response, and one with the refusal where it counts."""
    responses = [behavior.targets[0]] + [settings.refusal or behavior.refusals[0]] * (settings.refusal_weight > 0)
    both = [Attempt(behavior.id, prompt, response) for response in responses]
    laid_out, _ = lay_out(victim.model.tokenizer, both, victim.decoding, with_targets=True)
    return laid_out.rows([0]), laid_out.rows([1]) if len(both) == 2 else None


# The progress in the store.


def _about(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> int:
    """A checksum of what a search depends on beside the weights; the number of candidates at a time is not among it."""
    settings = dataclasses.asdict(context.settings) | {"batch_size": 0}
    asked = [(behavior.id, behavior.text, behavior.targets[:1], behavior.refusals[:1]) for behavior in behaviors]
    laid_out = (victim.decoding.system, victim.decoding.prompt_length, victim.decoding.response_length)
    return zlib.crc32(json.dumps([context.seed, settings, asked, laid_out]).encode())


def _save(behaviors: Sequence[Behavior], victim: Victim, context: Context, prompts: list[str], progress: Progress | None) -> None:
    """Keeps the prompts of the behaviors that are done, and the search of the one at hand."""
    if context.store is None:
        return
    arrays = {"about": np.array(_about(behaviors, victim, context)), "prompts": np.frombuffer(json.dumps(prompts).encode(), np.uint8)}
    if progress is not None:
        arrays |= {name: np.array(value) for name, value in dataclasses.asdict(progress).items()}
    context.store.save(arrays)


def _load(behaviors: Sequence[Behavior], victim: Victim, context: Context) -> tuple[list[str], Progress | None]:
    """What `_save` kept; nothing where there is none, or where it was made with other settings or texts."""
    saved = {} if context.store is None else context.store.load()
    if int(saved.get("about", -1)) != _about(behaviors, victim, context):
        return [], None
    prompts = json.loads(saved["prompts"].tobytes())
    if "bests_NxS" not in saved:  # between two behaviors, or of a version that kept the best suffix alone
        return prompts, None
    return prompts, Progress(saved["current_S"], saved["bests_NxS"], tuple(saved["losses"].tolist()), int(saved["unchanged"]))


# What can be sent.


def draw(suffix_S: np.ndarray, favored_SxK: np.ndarray, count: int, replaced: int, generator: np.random.Generator) -> np.ndarray:
    """Draws `count` candidates CxS: each has other tokens, of those favored there, in `replaced` places of the suffix."""
    S, K = favored_SxK.shape
    places_CxN = np.argsort(generator.random((count, S)), axis=1)[:, :replaced]
    chosen_CxN = favored_SxK[places_CxN, generator.integers(0, K, places_CxN.shape)]
    return _with(suffix_S, places_CxN, chosen_CxN)


def sendable(chat: Chat, tokenizer: Any, system: str | None, candidates_CxS: np.ndarray) -> np.ndarray:
    """Returns the candidates, each once, whose text behind the request is split into their own tokens, in the whole rendered chat."""
    unique_CxS = np.array(list(dict.fromkeys(map(tuple, candidates_CxS.tolist()))))

    def survives(suffix_S: np.ndarray, ids: np.ndarray) -> bool:
        text = chat.text(tokenizer, suffix_S)
        try:
            return text.startswith(f"{chat.behavior.text} ") and _encoded(tokenizer, text, system)[0] == ids.tolist()
        except ValueError:  # the chat template rewrites such a text
            return False

    return unique_CxS[[survives(suffix_S, ids) for suffix_S, ids in zip(unique_CxS, _with(chat.ids, chat.places_S, unique_CxS))]]


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)


def _encoded(tokenizer: Any, prompt: str, system: str | None) -> tuple[list[int], list[bool]]:
    """The ids of the whole rendered chat, and which of them are of the user's words."""
    return conversations.encode_prompt(tokenizer, conversations.with_system([{"role": "user", "content": prompt}], system), "user")


def _with(ids_T: np.ndarray, places: np.ndarray, chosen_CxN: np.ndarray) -> np.ndarray:
    """Copies of a row of ids, CxT, with others in some places, which are the same for all rows (N) or each row's own (CxN)."""
    rows_CxT = np.tile(ids_T, (len(chosen_CxN), 1))
    np.put_along_axis(rows_CxT, np.broadcast_to(places, chosen_CxN.shape), chosen_CxN, axis=1)
    return rows_CxT


# What the model says.


def losses_of(chat: Chat, victim: Victim, settings: Settings, suffixes_CxS: np.ndarray) -> np.ndarray:
    """The loss of each suffix, (C,)."""
    return _losses(_rows(chat, victim, suffixes_CxS), victim, settings)


def _losses(rows: tuple[Conversations, Conversations | None], victim: Victim, settings: Settings) -> np.ndarray:
    """The loss of each row, in batches of one compiled shape."""
    params, config = victim.model.params, victim.model.config
    P = rows[0].tokens_BxT.shape[1] - victim.decoding.response_length
    passes = len(rows[0].tokens_BxT) * (1 if rows[1] is None else 2)
    victim.spent["flops"] += flops.forward(config, victim.shape(passes, P))
    return victim.of_rows(rows, lambda batch: suffix_losses(params, config, *batch, settings.refusal_weight, P), settings.batch_size)


def favored(chat: Chat, victim: Victim, settings: Settings, suffix_S: np.ndarray, allowed_V: np.ndarray) -> np.ndarray:
    """The tokens SxK that the gradient at a suffix favors in each place; K is at most the number of allowed tokens."""
    columns_S, P = _columns(chat, victim)
    params, config, count = victim.model.params, victim.model.config, min(settings.topk, int(allowed_V.sum()))

    def compute(rows: tuple[Conversations, Conversations | None]) -> jax.Array:
        return favored_tokens(params, config, *rows, settings.refusal_weight, columns_S, allowed_V, count, P)

    victim.spent["flops"] += flops.input_gradient(config, victim.shape(1 if chat.refused is None else 2, P))
    # Every group of devices that shares a row gets the same one: there is but one suffix.
    size = 1 if victim.mesh is None else victim.mesh.shape["data"] * victim.mesh.shape["fsdp"]
    return victim.of_rows(_rows(chat, victim, suffix_S[None]), compute, size)[0]


def _columns(chat: Chat, victim: Victim) -> tuple[np.ndarray, int]:
    """Where the suffix stands in the layout, and the length of the prompt block, at whose end the prompt lies."""
    P = chat.rows.tokens_BxT.shape[1] - victim.decoding.response_length
    return P - len(chat.ids) + chat.places_S, P


def _rows(chat: Chat, victim: Victim, suffixes_CxS: np.ndarray) -> tuple[Conversations, Conversations | None]:
    """The chat with each suffix, once with the target and once with the refusal as response."""
    columns_S, _ = _columns(chat, victim)

    def with_suffixes(row: Conversations) -> Conversations:
        rows = row.rows(np.zeros(len(suffixes_CxS), int))
        rows.tokens_BxT[:, columns_S] = suffixes_CxS
        return rows

    return with_suffixes(chat.rows), None if chat.refused is None else with_suffixes(chat.refused)


ATTACK = Attack(
    name="gcg", title="GCG", surface="text", attempts=attempts, settings=Settings, adaptive=True, uses_target=True, raises=True,
    choices=("batch_size",),
)  # fmt: skip
