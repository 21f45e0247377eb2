"""The input pipeline (grain): batches of adversarial and utility rows that depend on the seed and the step alone.

Map-only: no filter, no packing. So the state of the pipeline is the step, a run resumes bit for bit, and the global batch is the same for
one, two or four hosts, of which each tokenizes and reads its rows.
"""

import logging
from collections.abc import Sequence

import flax.struct
import grain.python as grain
import numpy as np

from dat_jax.data.behaviors import Behavior
from dat_jax.data.conversations import (
    Array,
    Conversations,
    check_tokenizer,
    encode_prompt,
    encode_response,
    lay_out,
    prompt_tokens,
    tokenize,
    with_system,
)
from dat_jax.data.prompts import PromptRecord
from dat_jax.data.rewrites import Rewrite

Row = tuple[str, str, str]  # id, prompt, harmful response
ENDLESS = 2**40  # steps; datasets that are zipped must be of one length


@flax.struct.dataclass
class Batch:
    """One step's rows: the away and the toward row of a behavior share their prompt block; utility rows are benign chats."""

    away: Conversations
    toward: Conversations
    utility: Conversations
    behavior_B: Array = None  # numbers of the adversarial rows' behaviors


@flax.struct.dataclass
class AdversarialRows:
    """All adversarial rows of a run; row i of `away` and of `toward` have the same prompt."""

    away: Conversations
    toward: Conversations
    ids: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())  # of their behaviors, where they are known

    def behaviors(self) -> np.ndarray:
        """The number of each row's behavior, counted in the order of the rows; of the row itself where no ids are known."""
        names = self.ids or tuple(map(str, range(len(self.away.tokens_BxT))))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names], np.int32)


def triples(
    behaviors: Sequence[Behavior],
    records: Sequence[PromptRecord] | None,
    seed: int,
    add_requests: bool = False,
    rewrites: Sequence[Rewrite] = (),
    share: float = 0.5,
    request_share: float = 0.0,
) -> list[tuple[str, str, str, str]]:
    """Returns (id, prompt x, harmful response y, refusal) per adversarial row.

    Without records the prompts are the behaviors' own requests, one row per target (CAT); with records they are the selected samples (DAT),
    and with `add_requests` the requests too: each once, or as `request_share` of all rows. With rewrites each of them has a row per target,
    and they are `share` of all rows (MixAT). For a share, the kind that there is too little of is repeated.
    Each row's refusal is one of the behavior's, drawn by the seed: one sentence for all teaches the model that sentence.
    """
    draw = np.random.default_rng(seed)
    known = {b.id: b for b in behaviors}
    requests = [(b.id, b.text, target) for b in behaviors for target in b.targets]
    if records is None:
        others = [(r.behavior, r.prompt, target) for r in rewrites for target in known[r.behavior].targets]
        pairs = in_shares(requests, others, share, seed) if requests and others else requests
    else:
        samples = [(r.behavior_id, r.prompt, r.response) for r in records if r.selected]
        if samples and add_requests:
            pairs = in_shares(requests, samples, 1 - request_share, seed) if request_share else samples + requests
        else:
            pairs = samples
        unknown = {id for id, _, _ in pairs} - set(known)
        if unknown:
            raise ValueError(f"a sampled prompt belongs to behavior {sorted(unknown)[0]!r}, which the behaviors file does not have")
    if not pairs:
        raise ValueError("no adversarial prompt: no behavior with a target, or no sampled prompt was selected")
    return [(id, x, y, known[id].refusals[draw.integers(len(known[id].refusals))]) for id, x, y in pairs]


def in_shares(some: Sequence[Row], others: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Returns rows of both kinds, every row at least once, of which `others` are a share exact to half a row.

    One kind is there once, unless all rows are `others`. The other kind is repeated; what is left to its number of rows is drawn by the
    seed.
    """
    if share == 1:
        return list(others)
    total, draw = max(len(others) / share, len(some) / (1 - share)), np.random.default_rng([seed, 1])

    def repeated(rows: Sequence[Row], count: int) -> list[Row]:
        whole, rest = divmod(count, len(rows))
        return whole * list(rows) + [rows[i] for i in sorted(draw.permutation(len(rows))[:rest])]

    return repeated(some, round((1 - share) * total)) + repeated(others, round(share * total))


def within_block(tokenizer, rows: Sequence[tuple[str, str, str, str]], data) -> list[tuple[str, str, str, str]]:
    """Returns the rows whose prompt fits its block: a sampled prompt may have more tokens for the target than for the sampler."""
    kept = [row for row in rows if prompt_tokens(tokenizer, [{"role": "user", "content": row[1]}], data.system) <= data.prompt_length]
    if len(kept) < len(rows):
        logging.warning("left out %d of %d prompts longer than %d tokens", len(rows) - len(kept), len(rows), data.prompt_length)
    if not kept:
        raise ValueError(f"no prompt has at most config.data.prompt_length = {data.prompt_length} tokens")
    return kept


def adversarial_rows(tokenizer, rows: Sequence[tuple[str, str, str, str]], data) -> AdversarialRows:
    """Tokenizes (id, x, y, refusal) rows into away and toward conversations; ValueError names the behavior that does not fit."""

    def side(response):
        dialogs = [[{"role": "user", "content": x}, {"role": "assistant", "content": response(y, r)}] for _, x, y, r in rows]
        names = [f"behavior {id!r}" for id, *_ in rows]
        return tokenize(tokenizer, dialogs, data.prompt_length, data.response_length, data.perturb, data.system, names)

    return AdversarialRows(away=side(lambda y, r: y), toward=side(lambda y, r: r), ids=tuple(id for id, *_ in rows))


def utility_rows(tokenizer, chats, data) -> Conversations:
    """Tokenizes benign chats; those whose prompt is longer than its block are left out and counted, longer responses are cut."""
    check_tokenizer(tokenizer)
    prompts, allowed, responses, long = [], [], [], 0
    for chat in chats:
        messages = with_system(chat, data.system)
        ids, reached = encode_prompt(tokenizer, messages[:-1], data.perturb)
        if len(ids) > data.prompt_length:
            long += 1
            continue
        prompts.append(ids)
        allowed.append(reached)
        responses.append(encode_response(tokenizer, messages))
    if not prompts:
        raise ValueError(
            f"{data.chats}: none of {long} chats has a prompt of at most config.data.prompt_length = {data.prompt_length} tokens"
        )
    if long:
        logging.warning(
            "%s: left out %d of %d chats, whose prompts are longer than %d tokens", data.chats, long, len(chats), data.prompt_length
        )
    return lay_out(prompts, allowed, responses, data.prompt_length, data.response_length)


def _shuffled(rows: Conversations | AdversarialRows, count: int, seed: int, take: slice, select):
    """Returns an endless dataset of `count` rows per step, reshuffled every epoch, of which this process reads `take`."""
    return _order(rows, count, seed).map(lambda index: select(rows, index[take]))


def _order(rows: Conversations | AdversarialRows, count: int, seed: int) -> grain.MapDataset:
    """The numbers of the rows of each step."""
    first = rows.away if isinstance(rows, AdversarialRows) else rows
    return grain.MapDataset.range(len(first.tokens_BxT)).seed(seed).shuffle().repeat().batch(count)[:ENDLESS]


def row_numbers(adversarial: AdversarialRows, utility: Conversations, data, seed: int, step: int) -> dict[str, list[int]]:
    """Returns which rows, counted from 0, the batch of a step (counted from 1) holds of either kind; see `batches`."""
    orders = {
        "adversarial": _order(adversarial, data.adversarial_rows, seed),
        "utility": _order(utility, data.utility_rows, seed + 1),
    }
    return {kind: [int(number) for number in order[step - 1]] for kind, order in orders.items()}


def batches(adversarial: AdversarialRows, utility: Conversations, data, seed: int, take=slice(None)) -> grain.MapDataset:
    """Returns the dataset whose element i is the `Batch` of step i, with a fixed number of rows of either kind.

    take: (adversarial rows, utility rows) of the global batch that this process reads, as two slices, or one slice for both.
    """
    take_adversarial, take_utility = take if isinstance(take, tuple) else (take, take)
    numbers = adversarial.behaviors()
    pairs = _shuffled(
        adversarial, data.adversarial_rows, seed, take_adversarial, lambda r, i: (r.away.rows(i), r.toward.rows(i), numbers[i])
    )
    chats = _shuffled(utility, data.utility_rows, seed + 1, take_utility, lambda r, i: r.rows(i))
    zipped = grain.experimental.ZipMapDataset([pairs, chats])
    return zipped.map(lambda both: Batch(away=both[0][0], toward=both[0][1], utility=both[1], behavior_B=both[0][2]))
