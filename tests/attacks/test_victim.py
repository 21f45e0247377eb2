"""Batched decoding of attempts against decoding each alone, token by token, without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import sharding
from dat_jax.attacks import victim
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data import conversations
from dat_jax.models import transformer
from dat_jax.models.huggingface import Model
from dat_jax.training.network import Network
from dat_jax.training.perturbation import Perturbation, perturb

NEW = 6
ATTEMPTS = [
    Attempt("1", "paint the wood", "with a brush"),
    Attempt("2", "how did people paint the door with a brush", "wash the door", prefill="wash the"),
    Attempt("3", "a", "b c d e f g h i j"),
    Attempt("4", "how did people wash wood", "x y", prefill="x"),
    Attempt("5", "wash", "z"),
]


def decoding(**changes):
    base = dict(prompt_length=16, response_length=6, max_new_tokens=NEW, batch_size=2, temperature=0.0, perturb="user", system=None)
    return Decoding(**(base | changes))


def answer(model, attempts, seed=0, mesh=None, progress=lambda done: None, **changes):
    return Victim(model, decoding(**changes), seed, mesh).answer(attempts, progress)


@functools.partial(jax.jit, static_argnums=1)
def next_token(params, config, e_TxD, length):
    """The likeliest token after the first `length` embeddings, by one pass without a cache."""
    h_1xTxD = transformer.hidden(params, config, e_TxD[None], (jnp.arange(len(e_TxD)) < length)[None])
    return jnp.argmax(transformer.head(params, config, h_1xTxD[0, length - 1]))


def alone(model, attempt, delta_PxD=None):
    """Greedy decoding of one attempt by itself, one whole pass per token, and the text a reader would see."""
    tokenizer = model.tokenizer
    prompt, _ = conversations.encode_prompt(tokenizer, [{"role": "user", "content": attempt.prompt}], "user")
    prefix = tokenizer(attempt.prefill, add_special_tokens=False)["input_ids"]
    tokens, new = prompt + prefix, []
    delta_TxD = 0.0 if delta_PxD is None else np.asarray(delta_PxD)[-len(tokens) :]
    rows_VxD = np.asarray(model.params["embedding"])
    e_TxD = np.zeros((24, model.config.width), np.float32)
    e_TxD[: len(tokens)] = rows_VxD[tokens] + delta_TxD
    for length in range(len(tokens), len(tokens) + NEW):
        new.append(int(next_token(model.params, model.config, e_TxD, length)))
        if new[-1] == tokenizer.eos_token_id:
            new.pop()
            break
        e_TxD[length] = rows_VxD[new[-1]]
    return tokenizer.decode(prefix + new, skip_special_tokens=True).strip()


def test_equals_each_alone(small_model):
    done = []
    texts = answer(small_model, ATTEMPTS, progress=done.append)
    assert texts == [alone(small_model, attempt) for attempt in ATTEMPTS]
    assert done == [2, 4, 5]
    assert texts[1].startswith("wash the") and texts[1].count("wash the") >= 1 and texts[3].split()[0] == "x"
    assert texts == answer(small_model, ATTEMPTS, batch_size=5, prompt_length=20)
    assert answer(small_model, []) == []


def test_perturbed_decodes_from_the_perturbed_embeddings(small_model):
    plain = [attempt for attempt in ATTEMPTS if not attempt.prefill]
    how, chosen = Perturbation(steps=8, radius=0.6, iterate="best"), decoding(batch_size=3)
    laid_out, _ = victim.lay_out(small_model.tokenizer, plain, chosen, with_targets=True)
    found = jax.jit(perturb, static_argnums=2)(Network(small_model.params, None, small_model.config, 16), laid_out, how)
    asked = Victim(small_model, chosen, 0)
    perturbed = asked.perturb(plain, how)
    assert [(a.behavior, a.prompt, a.target, a.prefill) for a in perturbed] == [(a.behavior, a.prompt, a.target, a.prefill) for a in plain]
    for attempt, delta_PxD in zip(perturbed, found.delta[0]):
        np.testing.assert_allclose(attempt.delta[0], delta_PxD, atol=1e-6)
    texts = asked.answer(perturbed)
    assert texts == [alone(small_model, attempt, attempt.delta[0]) for attempt in perturbed]
    assert texts != asked.answer(plain)
    assert asked.answer(asked.perturb(plain, Perturbation(steps=0))) == asked.answer(plain)
    assert asked.perturb([], how) == []


def test_each_attempt_has_its_temperature(small_model):
    plain = [Attempt(str(i), "how did people paint the wood", "x") for i in range(4)]
    hot = [dataclasses.replace(attempt, temperature=5.0) for attempt in plain]
    greedy, mixed = answer(small_model, plain), answer(small_model, [hot[0], plain[1], hot[2], plain[3]])
    sampled = answer(small_model, plain, temperature=5.0)
    assert mixed == [sampled[0], greedy[1], sampled[2], greedy[3]]  # whatever stands in the batch beside it
    assert len(set(sampled)) > 1 and len(set(greedy)) == 1


def test_a_batch_may_mix_perturbed_and_plain_attempts(small_model):
    plain = [attempt for attempt in ATTEMPTS if not attempt.prefill]
    asked = Victim(small_model, decoding(batch_size=3), 0)
    first, *_ = asked.perturb(plain, Perturbation(steps=8, radius=0.6, iterate="best"))
    assert asked.answer([first, *plain[1:]]) == [alone(small_model, first, first.delta[0]), *(alone(small_model, a) for a in plain[1:])]


def test_a_wide_ball_lets_the_attack_say_the_target(small_model):
    """With the end of the turn in the target it says that and stops; without, what follows is in the answer too, and is judged with it."""
    plain = [Attempt(str(i), "how did people paint the wood", target) for i, target in enumerate(("x y", "b wash", "the"))]
    wide, asked = Perturbation(steps=150, radius=6.0, step_size=0.05, iterate="best"), Victim(small_model, decoding(batch_size=3), 0)
    assert asked.answer(asked.perturb(plain, wide)) == [attempt.target for attempt in plain]
    opened = asked.answer(asked.perturb([dataclasses.replace(attempt, target_eot=False) for attempt in plain], wide))
    for text, attempt in zip(opened, plain):
        said, target = text.split(), attempt.target.split()
        assert said[: len(target)] == target and len(said) > len(target)


def test_the_end_of_the_turn_adds_its_own_nll_to_the_objective_and_nothing_else(small_model):
    closed, asked = [ATTEMPTS[0], Attempt("3", "a", "b c")], Victim(small_model, decoding(), 0)
    found = zip(
        closed, (3, 2), asked.log_likelihood(closed), asked.log_likelihood([dataclasses.replace(a, target_eot=False) for a in closed])
    )
    for attempt, words, with_end, without in found:
        prompt, _ = conversations.encode_prompt(small_model.tokenizer, [{"role": "user", "content": attempt.prompt}], "user")
        ids = prompt + small_model.tokenizer(attempt.target, add_special_tokens=False)["input_ids"]
        e_TxD = np.asarray(small_model.params["embedding"])[ids]
        h_1xTxD = transformer.hidden(small_model.params, small_model.config, e_TxD[None], np.ones((1, len(ids)), bool))
        logp_V = jax.nn.log_softmax(transformer.head(small_model.params, small_model.config, h_1xTxD[0, -1]))
        end = float(logp_V[small_model.tokenizer.eos_token_id])
        assert (words + 1) * with_end - words * without == pytest.approx(end, abs=1e-4) and end < -0.1


def test_all_radii_and_step_sizes_share_one_program(small_model):
    asked = Victim(small_model, decoding(batch_size=3), 0)
    first = asked.perturb(ATTEMPTS[:1], Perturbation(steps=1, radius=0.6))
    before = victim.perturbation._cache_size()
    wider = asked.perturb(ATTEMPTS[:1], Perturbation(steps=1, radius=1.2))
    asked.perturb(ATTEMPTS[:1], Perturbation(steps=1, radius=0.6, step_size=0.1))
    assert victim.perturbation._cache_size() == before
    np.testing.assert_allclose(wider[0].delta[0], 2 * first[0].delta[0], atol=1e-5)  # a sign step from zero, a share of the radius


def test_what_a_prompt_may_have(small_model):
    asked = Victim(small_model, decoding(prompt_length=2), 0)
    assert asked.fits("a " * 12) and not asked.fits("a " * 14)  # 16 tokens with the chat template's three or four


@pytest.mark.parametrize(("perturb", "reached"), [("user", 3), ("user+template", 6), ("all", 6)])
def test_which_tokens_an_attack_reaches(small_model, perturb, reached):
    laid_out, _ = victim.lay_out(small_model.tokenizer, ATTEMPTS[:1], decoding(perturb=perturb), with_targets=True)
    assert laid_out.prompt_mask_BxT.sum() == reached  # <user> paint the wood <end> <assistant>


def test_tokens_in_place_of_a_prompt_are_sent_as_they_are(small_model):
    """What a search over tokens sends need not be what a text would be split into; the text is for readers alone."""
    ids, _ = conversations.encode_prompt(small_model.tokenizer, [{"role": "user", "content": ATTEMPTS[1].prompt}], "user")
    written = Attempt("2", "another text", "wash the door", prefill="wash the", tokens=tuple(ids))
    assert answer(small_model, [written, ATTEMPTS[0]]) == [alone(small_model, ATTEMPTS[1]), alone(small_model, ATTEMPTS[0])]
    changed = Attempt("2", ATTEMPTS[1].prompt, "wash the door", tokens=(*ids[:-1], ids[0]))
    laid_out, _ = victim.lay_out(small_model.tokenizer, [changed], decoding(), with_targets=False)
    assert laid_out.tokens_BxT[0, 16 - len(ids) : 16].tolist() == [*ids[:-1], ids[0]]


def test_layout(small_model):
    laid_out, prefixes = victim.lay_out(small_model.tokenizer, ATTEMPTS, decoding(), with_targets=False)
    assert not laid_out.response_mask_BxT.any()
    row, ids = 1, small_model.tokenizer("wash the", add_special_tokens=False)["input_ids"]
    assert prefixes[row] == ids and laid_out.tokens_BxT[row, 14:16].tolist() == ids
    assert not laid_out.prompt_mask_BxT[row, 13:].any()  # the assistant's tag and the prefix are not the user's words
    assert laid_out.prompt_mask_BxT[row].sum() == 9
    with_targets, _ = victim.lay_out(small_model.tokenizer, ATTEMPTS, decoding(), with_targets=True)
    assert with_targets.response_mask_BxT.sum(axis=1).tolist() == [4, 4, 6, 3, 2]  # with the end of the turn, cut at the block


def test_longer_prompts_get_more_blocks(small_model):
    laid_out, _ = victim.lay_out(small_model.tokenizer, ATTEMPTS, decoding(prompt_length=5), with_targets=False)
    assert laid_out.tokens_BxT.shape[1] == 15 + 6
    with pytest.raises(ValueError, match="14 tokens, more than 8 times"):
        victim.lay_out(small_model.tokenizer, ATTEMPTS, decoding(prompt_length=1), with_targets=False)


def test_sampling_is_seeded_by_behavior_and_number_whatever_the_batch(small_model):
    """What stands beside an attempt does not matter: not the size of a batch, nor behaviors that were answered by another call."""
    hot = {"temperature": 1.5, "prompt_length": 20}
    first = answer(small_model, ATTEMPTS, **hot)
    assert first == answer(small_model, ATTEMPTS, **hot, batch_size=5)
    assert first[2:] == answer(small_model, ATTEMPTS[2:], **hot)
    assert first != answer(small_model, ATTEMPTS, seed=1, **hot)
    twice = answer(small_model, [ATTEMPTS[0], ATTEMPTS[0], ATTEMPTS[1]], **hot)
    assert twice[0] == first[0] != twice[1] and twice[2] == first[1]


def test_mesh_gives_the_same(small_model):
    mesh = sharding.make_mesh(2, 2, 1)
    how, plain = Perturbation(steps=4, radius=0.6, optimizer="normalized"), [attempt for attempt in ATTEMPTS if not attempt.prefill]
    with jax.set_mesh(mesh):
        spread = answer(small_model, ATTEMPTS, batch_size=4, mesh=mesh)
        deltas = [attempt.delta[0] for attempt in Victim(small_model, decoding(batch_size=4), 0, mesh).perturb(plain, how)]
        with pytest.raises(ValueError, match="a batch of 3 rows does not divide by"):
            answer(small_model, ATTEMPTS, batch_size=3, mesh=mesh)
    assert spread == answer(small_model, ATTEMPTS)
    alone_ = [attempt.delta[0] for attempt in Victim(small_model, decoding(batch_size=4), 0).perturb(plain, how)]
    np.testing.assert_allclose(deltas, alone_, atol=1e-4)


def test_one_compilation(small_model):
    answer(small_model, ATTEMPTS[:1], batch_size=3)
    before = victim.generate._cache_size()
    answer(small_model, ATTEMPTS, seed=5, batch_size=3)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, small_model.params)
    answer(Model(changed, small_model.config, small_model.tokenizer), ATTEMPTS[:2], batch_size=3)
    assert victim.generate._cache_size() == before


def test_the_prompt_block_changes_the_padding_and_no_answer(small_model):
    """Prompts are padded to the smallest multiple of `prompt_block`; a perturbation that was found in a longer block still fits."""
    tokenizer, fine = small_model.tokenizer, decoding(prompt_block=4)
    of = [Victim(small_model, how, 0) for how in (decoding(), fine)]
    lengths = [victim.lay_out(tokenizer, ATTEMPTS[2:3], how, True)[0].tokens_BxT.shape[1] - 6 for how in (decoding(), fine)]
    longest = len(conversations.encode_prompt(tokenizer, [{"role": "user", "content": "a"}], "user")[0])
    assert lengths == [16, -(-longest // 4) * 4] and lengths[1] < 16
    perturbed = of[0].perturb(ATTEMPTS, Perturbation(steps=2, radius=2.0, step_size=1.0))
    assert of[0].answer(perturbed) == of[1].answer(perturbed)
    np.testing.assert_allclose(of[0].log_likelihood(perturbed[2:3]), of[1].log_likelihood(perturbed[2:3]), atol=1e-5)
    with pytest.raises(ValueError, match="8 times config"):  # the most tokens are those of the prompt length
        of[1].answer([Attempt("1", "paint " * 130, "x")])


def test_a_measured_response_takes_as_many_tokens_as_it_needs(small_model):
    attempts = ATTEMPTS[:2]
    short, long = Victim(small_model, decoding(response_length=8), 0), Victim(small_model, decoding(response_length=40), 0)
    np.testing.assert_allclose(short.log_likelihood(attempts), long.log_likelihood(attempts), atol=1e-5)
    assert short.spent == long.spent
