"""Batched decoding of attempts against decoding each alone, token by token, without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.data import conversations
from dat_jax.evaluation import responses
from dat_jax.evaluation.attacks.text import Attempt
from dat_jax.models import transformer
from dat_jax.models.huggingface import Model
from dat_jax.training import perturbation
from dat_jax.training.perturbation import Attack

NEW = 6
ATTEMPTS = [
    Attempt("1", "paint the wood", "with a brush"),
    Attempt("2", "how did people paint the door with a brush", "wash the door", prefill="wash the"),
    Attempt("3", "a", "b c d e f g h i j"),
    Attempt("4", "how did people wash wood", "x y", prefill="x"),
    Attempt("5", "wash", "z"),
]


def settings(**changes):
    base = dict(
        prompt_length=16, response_length=6, max_new_tokens=NEW, batch_size=2, temperature=0.0, perturb="user", system=None, attack=Attack()
    )
    return responses.Settings(**(base | changes))


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
    texts = responses.respond(small_model, ATTEMPTS, settings(), seed=0, progress=done.append)
    assert texts == [alone(small_model, attempt) for attempt in ATTEMPTS]
    assert done == [2, 4, 5]
    assert texts[1].startswith("wash the") and texts[1].count("wash the") >= 1 and texts[3].split()[0] == "x"
    assert texts == responses.respond(small_model, ATTEMPTS, settings(batch_size=5, prompt_length=20), seed=0)


def test_perturbed_decodes_from_the_perturbed_embeddings(small_model):
    plain = [attempt for attempt in ATTEMPTS if not attempt.prefill]
    attack = Attack(steps=8, radius=0.6, iterate="best")
    chosen = settings(attack=attack, batch_size=3)
    laid_out, _ = responses.lay_out(small_model.tokenizer, plain, chosen, with_targets=True)
    delta_BxPxD, _ = jax.jit(perturbation.perturb, static_argnums=(1, 3, 4))(small_model.params, small_model.config, laid_out, attack, 16)
    expected = [alone(small_model, attempt, delta_BxPxD[row]) for row, attempt in enumerate(plain)]
    found = responses.respond(small_model, plain, chosen, seed=0, perturbed=True)
    assert found == expected
    assert found != responses.respond(small_model, plain, chosen, seed=0)
    still = settings(attack=Attack(steps=0), batch_size=3)
    assert responses.respond(small_model, plain, still, seed=0, perturbed=True) == responses.respond(small_model, plain, chosen, seed=0)


def test_a_wide_ball_lets_the_attack_say_the_target(small_model):
    plain = [Attempt(str(i), "how did people paint the wood", target) for i, target in enumerate(("x y", "b wash", "the"))]
    wide = settings(attack=Attack(steps=150, radius=6.0, step_size=0.05, iterate="best"), batch_size=3)
    texts = responses.respond(small_model, plain, wide, seed=0, perturbed=True)
    assert texts == [attempt.target for attempt in plain]


def test_layout(small_model):
    laid_out, prefixes = responses.lay_out(small_model.tokenizer, ATTEMPTS, settings(), with_targets=False)
    assert not laid_out.response_mask_BxT.any()
    row, ids = 1, small_model.tokenizer("wash the", add_special_tokens=False)["input_ids"]
    assert prefixes[row] == ids and laid_out.tokens_BxT[row, 14:16].tolist() == ids
    assert not laid_out.prompt_mask_BxT[row, 13:].any()  # the assistant's tag and the prefix are not the user's words
    assert laid_out.prompt_mask_BxT[row].sum() == 9
    with_targets, _ = responses.lay_out(small_model.tokenizer, ATTEMPTS, settings(), with_targets=True)
    assert with_targets.response_mask_BxT.sum(axis=1).tolist() == [4, 4, 6, 3, 2]  # with the end of the turn, cut at the block


def test_longer_prompts_get_more_blocks(small_model):
    laid_out, _ = responses.lay_out(small_model.tokenizer, ATTEMPTS, settings(prompt_length=5), with_targets=False)
    assert laid_out.tokens_BxT.shape[1] == 15 + 6
    with pytest.raises(ValueError, match="14 tokens, more than 8 times"):
        responses.lay_out(small_model.tokenizer, ATTEMPTS, settings(prompt_length=1), with_targets=False)


def test_sampling_is_seeded(small_model):
    hot = settings(temperature=1.5)
    first = responses.respond(small_model, ATTEMPTS, hot, seed=0)
    assert first == responses.respond(small_model, ATTEMPTS, hot, seed=0)
    assert first != responses.respond(small_model, ATTEMPTS, hot, seed=1)


def test_mesh_gives_the_same(small_model):
    from dat_jax import sharding

    mesh = sharding.make_mesh(2, 2, 1)
    with jax.set_mesh(mesh):
        spread = responses.respond(small_model, ATTEMPTS, settings(batch_size=4), seed=0, mesh=mesh)
    assert spread == responses.respond(small_model, ATTEMPTS, settings(), seed=0)


def test_one_compilation(small_model):
    responses.respond(small_model, ATTEMPTS[:1], settings(batch_size=3), seed=0)
    before = responses.answer._cache_size()
    responses.respond(small_model, ATTEMPTS, settings(batch_size=3), seed=5)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, small_model.params)
    responses.respond(Model(changed, small_model.config, small_model.tokenizer), ATTEMPTS[:2], settings(batch_size=3), seed=0)
    assert responses.answer._cache_size() == before
