"""The likelihoods of targets and refusals behind what attacks send."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict

from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim, lay_out
from dat_jax.models import transformer
from dat_jax.report.breakdown import under_attack as rows_of
from dat_jax.stations.likelihoods import taken, under_attack
from dat_jax.training.perturbation import Perturbation

REFUSAL = "no , i am sorry"
TARGETS = {"1": "with a brush", "2": "a b c"}


@pytest.fixture
def victim(small_model):
    return Victim(small_model, Decoding(16, 8, 4, 2, 0.0, "user", None), 0)


def by_hand(victim, attempt, text):
    """Mean -log p of a text's tokens, one position at a time, behind the embeddings of the prompt and what is added to them."""
    model = victim.model
    laid_out, _ = lay_out(model.tokenizer, [dataclasses.replace(attempt, target=text, target_eot=False)], victim.decoding, True)
    P = laid_out.tokens_BxT.shape[1] - victim.decoding.response_length
    e_1xTxD = transformer.embed(model.params, model.config, jnp.asarray(laid_out.tokens_BxT))
    if attempt.delta:
        delta_PxD = attempt.delta[0]
        e_1xTxD = e_1xTxD.at[0, P - len(delta_PxD) : P].add(delta_PxD)
    h_1xTxD = transformer.hidden(model.params, model.config, e_1xTxD, jnp.asarray(laid_out.valid_BxT))
    logits_TxV = np.asarray(transformer.head(model.params, model.config, h_1xTxD))[0].astype(np.float64)
    logp_TxV = logits_TxV - np.log(np.exp(logits_TxV).sum(-1, keepdims=True))
    places = np.flatnonzero(laid_out.response_mask_BxT[0])
    return -np.mean([logp_TxV[place - 1, laid_out.tokens_BxT[0, place]] for place in places])


def test_they_are_those_of_the_perturbed_prompt_and_cost_the_attack_nothing(victim):
    plain = [Attempt("1", "paint the wood", "x"), Attempt("2", "wash", "y", prefill="a"), Attempt("2", "wash", "y", prefill="a b c")]
    plain += victim.perturb([Attempt("1", "paint the wood", TARGETS["1"])], Perturbation(steps=20, radius=2.0, step_size=0.1))
    before = dict(victim.spent)
    found = under_attack(plain, victim, TARGETS, REFUSAL)
    assert victim.spent == before
    assert found[2]["target_nll"] is None  # all of the target was prefilled
    expected = [by_hand(victim, attempt, text) for attempt, text in zip(plain, ("with a brush", "b c", "x", "with a brush"))]
    for line, attempt, value, measured in zip(found, plain, expected, (True, True, False, True)):
        assert not measured or line["target_nll"] == pytest.approx(value, abs=1e-4)
        assert line["refusal_nll"] == pytest.approx(by_hand(victim, attempt, REFUSAL), abs=1e-4)
    assert found[3]["target_nll"] < found[0]["target_nll"] - 0.01


def test_the_attackers_best_attempt_counts():
    lines = [("1", 3.0, 1.0), ("1", 2.0, 0.5), ("2", None, 4.0)]
    attempts = [{"behavior": b, "target_nll": target, "refusal_nll": refusal} for b, target, refusal in lines]
    by_run = {("cat", 0): {"direct": attempts, "rewrite:past": [{"behavior": "1"}]}, ("cat", 1): {"direct": [attempts[0]]}}
    rows = {row["measure"]: row for row in rows_of(by_run, {})}
    assert rows["target_nll"]["value"] == 2.5 and rows["target_nll"]["behaviors"] == 1 and rows["target_nll"]["by_seed"] == {0: 2.0, 1: 3.0}
    assert (rows["target_nll"]["low"], rows["target_nll"]["high"]) == (2.0, 3.0)  # one behavior, two seeds
    assert rows["refusal_nll"]["value"] == 2.5 and rows["refusal_nll"]["behaviors"] == 2
    assert {row["attack"] for row in rows.values()} == {"direct"}
    assert "told_apart" not in rows["refusal_nll"]  # no harmless prompt was measured


def test_attacks_are_told_from_harmless_prompts_at_the_same_share_refused():
    """The area against scipy's Mann-Whitney U; the shares against counts by hand, on models whose refusals differ by a constant."""
    rng = np.random.default_rng(0)
    attacked, harmless = np.round(rng.normal(2.0, 1.0, 30), 1), np.round(rng.normal(3.0, 1.0, 40), 1)  # some values are equal
    lines = {("cat", 0): {"direct": [{"behavior": str(n), "refusal_nll": x} for n, x in enumerate(attacked)]}}
    lines["dat", 0] = {"direct": [row | {"refusal_nll": row["refusal_nll"] + 5} for row in lines["cat", 0]["direct"]]}
    of = {("cat", 0): [{"refusal_nll": x} for x in harmless], ("dat", 0): [{"refusal_nll": x + 5} for x in harmless]}
    first, second = (row["told_apart"] for row in rows_of(lines, of))
    u = scipy.stats.mannwhitneyu(harmless, attacked).statistic
    assert first["auc"]["rate"] == pytest.approx(u / 1200) and 0.5 < first["auc"]["low"] < first["auc"]["high"] < 1
    assert second["auc"]["rate"] == pytest.approx(first["auc"]["rate"])
    for row, count in zip(first["at"], (2, 4, 8)):  # 5, 10 and 20 % of 40
        assert row["rate"] == pytest.approx(np.mean(attacked <= np.sort(harmless)[count - 1]))
    half = {("cat", 0): [*of["cat", 0], {}]}  # a prompt that was added, and not measured
    assert "told_apart" not in rows_of({("cat", 0): lines["cat", 0]}, half)[0]
    few = rows_of({("cat", 0): lines["cat", 0]}, {("cat", 0): [{"refusal_nll": 1.5}]})[0]["told_apart"]
    assert few["at"][0]["rate"] == np.mean(attacked < 1.5)


def test_of_a_harmless_prompt_the_refusal_alone_is_measured(victim):
    measured = taken(ConfigDict({"measures": ("attacks",), "refusal": REFUSAL}), {})
    attempt = Attempt("7", "paint the wood", "with a brush")
    (found,) = measured([attempt], victim)
    assert found == {"refusal_nll": pytest.approx(by_hand(victim, attempt, REFUSAL), abs=1e-4)}
    assert taken(ConfigDict({"measures": (), "refusal": REFUSAL}), {}) is None
