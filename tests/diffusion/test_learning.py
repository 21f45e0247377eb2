"""The layout of sampler rows and the training of a small masked-diffusion LM on pairs whose law is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.diffusion.layout import pack, prompt_block, template
from dat_jax.diffusion.learning import Learning, batches, draw_mask, learn, masked_loss, pair_rows
from dat_jax.diffusion.likelihood import log_likelihood
from dat_jax.diffusion.sampler import InfillSettings, infill, row_keys

PAIRS = [
    (f"{ask} {past} {who} {verb} {thing}", f"{'turn' if verb == 'open' else 'pull'} {thing}")
    for ask, past, who, verb, thing in itertools.product(("how", "why"), ("do", "did"), ("i", "you"), ("open", "close"), ("safe", "door"))
]


def test_layout_puts_the_prompt_left_padded_and_the_response_right_padded(small_tokenizer):
    around = template(small_tokenizer, "answer:", begin=True)
    rows = pack([[9, 10], [9, 10, 11]], [[17], [17, 18, 19]], around, 6, 3)
    np.testing.assert_array_equal(rows.tokens_BxT, [[0, 2, 9, 10, 15, 16, 17, 3, 0], [2, 9, 10, 11, 15, 16, 17, 18, 19]])
    np.testing.assert_array_equal(rows.prompt_mask_BxT.sum(axis=1), [2, 3])
    np.testing.assert_array_equal(rows.valid_BxT[0], [0, 1, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(rows.response_mask_BxT[0], [0, 0, 0, 0, 0, 0, 1, 1, 0])
    assert prompt_block(around, 3) == 6
    with pytest.raises(ValueError, match="4 tokens"):
        pack([[9] * 4], [[17]], around, 6, 3)


def test_masks_respect_roles_and_the_response_limit(small_tokenizer):
    rows, left_out = pair_rows(small_tokenizer, template(small_tokenizer, "answer:", True), [*PAIRS, ("", "yes")], 8, 4)
    assert left_out == 1 and len(rows.tokens_BxT) == 32
    draw = jax.jit(draw_mask, static_argnums=(2, 3))
    seen = np.zeros(rows.tokens_BxT.shape)
    for number in range(40):
        mask, count = map(np.asarray, draw(rows, jax.random.key(number), 0.5, 0.4))
        in_response = (mask & rows.response_mask_BxT).sum(axis=1)
        assert not (mask & ~(rows.prompt_mask_BxT | rows.response_mask_BxT)).any()
        assert (in_response <= 1).all()  # 0.4 of three tokens
        assert (in_response > 0).sum() <= 16 and (count >= 1).all()
        seen += mask
    assert (seen[rows.prompt_mask_BxT] > 0).all()


def test_loss_is_an_unbiased_estimate_of_the_bound_per_token(small_sampler, small_tokenizer):
    rows, _ = pair_rows(small_tokenizer, template(small_tokenizer, "answer:", True), PAIRS[:8], 5, 3)
    loss = jax.jit(lambda key: masked_loss(small_sampler.params, small_sampler.config, rows, key, 1.0))
    values = np.array([float(loss(jax.random.key(number))) for number in range(200)])
    keys = row_keys(jax.random.key(0), jnp.arange(8))
    bound = log_likelihood(
        small_sampler.params, small_sampler.config, *map(jnp.asarray, (rows.tokens_BxT, rows.prompt_mask_BxT, rows.valid_BxT)), keys, 200
    )
    assert values.mean() == pytest.approx(-float(jnp.mean(bound)) / 5, abs=5 * values.std() / np.sqrt(200) + 1e-3)


def test_a_trained_sampler_infills_prompts_that_fit_the_response(small_sampler, small_tokenizer):
    lines: list[str] = []
    around = template(small_tokenizer, "answer:", True)
    rows, _ = pair_rows(small_tokenizer, around, PAIRS * 8, 5, 3)
    settings = Learning(steps=300, batch_size=32, learning_rate=3e-3, held_out=32, draws=4)
    params, bounds = learn(small_sampler.params, small_sampler.config, rows, settings, jax.random.key(0), 0, lines.append)
    after, before = bounds["after"]["prompt_given_response"], bounds["before"]["prompt_given_response"]
    assert -3 * np.log(2) / 5 - 0.12 < after < -3 * np.log(2) / 5 + 0.05 and before < after - 1  # three of five words are free coins
    assert any("held-out" in line for line in lines)
    answers = [small_tokenizer.encode(text, add_special_tokens=False) for text in ("turn safe", "pull door")]
    asked = pack([[0] * 5] * 128, [answers[row % 2] for row in range(128)], around, prompt_block(around, 5), 3)
    done = infill(
        params, small_sampler.config, *map(jnp.asarray, (asked.tokens_BxT, asked.prompt_mask_BxT, asked.valid_BxT)),
        row_keys(jax.random.key(1), jnp.arange(128)), InfillSettings(steps=5, forbidden=(0, 1, 2, 3, 4)), 5,
    )  # fmt: skip
    known = dict(PAIRS)
    texts = [small_tokenizer.decode(row[mask]) for row, mask in zip(np.asarray(done.tokens_BxT), asked.prompt_mask_BxT)]
    right = [known.get(text) == ("turn safe", "pull door")[row % 2] for row, text in enumerate(texts)]
    assert np.mean(right) > 0.9
    assert len({text for text, fine in zip(texts, right) if fine}) >= 14  # of the 16 prompts of the two responses


def test_bad_settings_and_too_few_pairs_are_named(small_tokenizer):
    with pytest.raises(ValueError, match=r"^prompt_only"):
        Learning(prompt_only=2)
    with pytest.raises(ValueError, match=r"^anneal_steps: found 5, allowed is at most steps=4"):
        Learning(steps=4, anneal_steps=5)
    rows, _ = pair_rows(small_tokenizer, template(small_tokenizer, "answer:", True), PAIRS[:4], 5, 3)
    with pytest.raises(ValueError, match=r"^batch_size"):
        next(batches(rows, 64, 0))
