"""The pipeline: every step's rows depend on seed and step alone, whatever the number of hosts, and counts are fixed."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from dat_jax.data import pipeline
from dat_jax.data.behaviors import Behavior
from dat_jax.data.conversations import lay_out
from dat_jax.data.prompts import PromptRecord
from dat_jax.data.rewrites import Rewrite

DATA = ConfigDict({"adversarial_rows": 4, "utility_rows": 6})


def rows(count, response):
    return lay_out([[i + 1] for i in range(count)], [[True]] * count, [[response]] * count, 3, 2)


def dataset(seed=0, take=slice(None)):
    adversarial = pipeline.AdversarialRows(away=rows(10, 100), toward=rows(10, 200))
    return pipeline.batches(adversarial, rows(15, 300), DATA, seed, take)


def prompts(conversations):
    return conversations.tokens_BxT[:, 2].tolist()


def test_fixed_counts_and_shared_prompts():
    for step in range(20):
        batch = dataset()[step]
        assert len(prompts(batch.away)) == 4 and len(prompts(batch.utility)) == 6
        assert prompts(batch.away) == prompts(batch.toward)
        assert set(batch.away.tokens_BxT[:, 3]) == {100} and set(batch.toward.tokens_BxT[:, 3]) == {200}


def test_every_row_once_per_epoch_in_a_new_order():
    stream = [p for step in range(10) for p in prompts(dataset()[step].away)]
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(1, 11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_same_seed_same_batches_at_any_step():
    one, other = dataset(3), dataset(3)
    _ = [one[step] for step in range(5)]  # reading on does not change what a step is: the state is the step
    assert prompts(one[7].utility) == prompts(other[7].utility)
    assert prompts(dataset(4)[7].utility) != prompts(one[7].utility)


@pytest.mark.parametrize(
    ("some", "others", "share", "counts"),
    [(24, 264, 0.5, (264, 264)), (6, 2, 0.5, (6, 6)), (4, 6, 0.5, (6, 6)), (3, 9, 0.25, (27, 9)), (6, 1, 0.75, (6, 18)), (5, 3, 1, (0, 3))],
)
def test_the_share_of_rewrites_is_exact(some, others, share, counts):
    """More of them or fewer than requests, in a ratio that is whole or not; no row is left out or more than once more than another."""
    kinds = [[(str(i), kind, "y") for i in range(count)] for kind, count in (("request", some), ("rewrite", others))]
    rows = pipeline.in_shares(*kinds, share, seed=3)
    assert tuple(sum(row in kind for row in rows) for kind in kinds) == counts
    for kind in kinds:
        times = [rows.count(row) for row in kind]
        assert max(times) - min(times) <= 1 and (min(times) >= 1 or share == 1)
    assert rows == pipeline.in_shares(*kinds, share, seed=3)
    if (some, others) == (4, 6):
        assert len({tuple(pipeline.in_shares(*kinds, share, seed)) for seed in range(9)}) > 1  # which requests are twice there is drawn


def test_requests_and_their_rewrites_have_as_many_rows():
    behaviors = [Behavior("a", "do a", ("y1", "y2"), ("no",)), Behavior("b", "do b", ("y3",), ("no",))]
    rewrites = [Rewrite(id, form, f"{form} {id}") for form in ("past", "polite", "terse") for id in ("a", "b")]
    rows = [row[:3] for row in pipeline.triples(behaviors, None, 0, rewrites=rewrites)]
    plain = [("a", "do a", "y1"), ("a", "do a", "y2"), ("b", "do b", "y3")]
    assert rows[:9] == 3 * plain and sorted(rows[9:]) == sorted(
        (id, f"{form} {id}", y) for form in ("past", "polite", "terse") for id, y in (("a", "y1"), ("a", "y2"), ("b", "y3"))
    )
    rows = [row[:3] for row in pipeline.triples(behaviors, None, 0, rewrites=rewrites, share=0.25)]
    assert rows[:27] == 9 * plain and len(rows) == 36
    assert [row[:3] for row in pipeline.triples(behaviors, None, 0, rewrites=())] == plain


@pytest.mark.parametrize("hosts", [2])
def test_the_hosts_parts_join_to_the_global_batch(hosts):
    whole = dataset()
    for step in range(8):
        away, utility = [], []
        for host in range(hosts):
            take = (slice(host * 2, host * 2 + 2), slice(host * 3, host * 3 + 3))
            part = dataset(take=take)[step]
            away += prompts(part.away)
            utility += prompts(part.utility)
        assert away == prompts(whole[step].away) and utility == prompts(whole[step].utility)


def test_cat_uses_requests_and_dat_the_selected_samples():
    behaviors = [Behavior("a", "do a", ("y1", "y2"), ("no", "never")), Behavior("b", "do b", ("y3",), ("no",))]
    cat = pipeline.triples(behaviors, None, 0)
    assert [row[:3] for row in cat] == [("a", "do a", "y1"), ("a", "do a", "y2"), ("b", "do b", "y3")]
    record = PromptRecord("a", "a was done how?", "y1", 0, "s", {}, None, 4, 1.0, True)
    skipped = PromptRecord("a", "nonsense", "y1", 0, "s", {}, None, 4, 0.0, False)
    assert [row[:3] for row in pipeline.triples(behaviors, [record, skipped], 0)] == [("a", "a was done how?", "y1")]
    both = pipeline.triples(behaviors, [record, skipped], 0, add_requests=True)
    assert [row[:3] for row in both] == [("a", "a was done how?", "y1"), *(row[:3] for row in cat)]
    equal = pipeline.triples(behaviors, [record, skipped], 0, add_requests=True, request_share=0.6)  # as in MixAT: the few are repeated
    assert [row[:3] for row in equal] == [*(row[:3] for row in cat), *2 * [("a", "a was done how?", "y1")]]
    drawn = {row[3] for seed in range(20) for row in pipeline.triples(behaviors, None, seed)}
    assert drawn == {"no", "never"}
    with pytest.raises(ValueError, match="'c', which the behaviors file does not have"):
        pipeline.triples(behaviors, [PromptRecord("c", "x", "y", 0, "s", {}, None, 4, 1.0, True)], 0)
    with pytest.raises(ValueError, match="no sampled prompt was selected"):
        pipeline.triples(behaviors, [skipped], 0)
    assert np.shape(cat) == (3, 4)
