"""Every attack on models whose weaknesses are known, as their weights were written by hand: one that complies, one that refuses what is
asked plainly, one that refuses whatever comes.

The second model measures how large a share of its prompt are the words of the request, and refuses above a quarter. So a longer sentence,
misspelt words, a prefilled answer and perturbed embeddings break it, and the plain request does not.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Preference
from dat_jax.judges.judge import Verdict
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

BEHAVIOR = Behavior("1", "paint the door", ("with brush",), ("a b",))
LONGER = "how did people paint the door"
HOW = Decoding(prompt_length=16, response_length=4, max_new_tokens=3, batch_size=8, temperature=0.0, perturb="user", system=None)
U, W, D = 46, 47, 48  # dimensions: whether a token is the request's, which share of the prompt is; and their number
# Attacks that do not change how plainly is asked.
PLAIN = {"direct", "direct_samples"}


def planted(small_model, kind):
    """A model by hand; kind: complies, refuses what is asked plainly, refuses."""
    tokenizer = small_model.tokenizer
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("paint", "door", "with", "brush", "a", "b", "<end>", "<assistant>")}
    config = ModelConfig(vocab_size=len(tokenizer), width=D, layers=2, heads=1, mlp_width=8, remat=False)
    params = jax.tree.map(np.zeros_like, weights.initialize(jax.random.key(0), config))
    for norm in ("attention_norm", "mlp_norm"):
        params["layers"][norm][:] = 1.0
    params["final_norm"][:] = 1.0
    words = np.arange(config.vocab_size)
    params["embedding"][words, words] = 1.0
    params["embedding"][[ids["paint"], ids["door"]], U] = 1.0
    params["layers"]["v"][1, U, U] = 1.0  # the second layer: the mean over the prompt of what is the request's
    params["layers"]["o"][1, U, W] = 1 / np.sqrt(D / 2)  # of a request's word the norm leaves sqrt(D / 2)
    head, after, strong = params["head"], {"with": "brush", "a": "b"}, 30.0
    head[:, ids["<end>"]] = strong
    for word, following in after.items():
        head[ids[word], [ids["<end>"], ids[following]]] = 0.0, strong
    head[[ids["<assistant>"], U, W], ids["<end>"]] = 0.0
    head[ids["<assistant>"], ids["with"]] = 10.0 if kind == "complies" else 2.5
    if kind == "refuses what is asked plainly":
        head[W, ids["a"]] = 10.0
    if kind == "refuses":
        head[ids["<assistant>"], ids["a"]] = strong
        head[ids["with"], [ids["brush"], ids["a"]]] = 0.0, strong  # also after a prefilled answer
    return Model(jax.tree.map(jnp.asarray, params), config, tokenizer, kind)


@pytest.fixture(scope="module")
def victims(small_model):
    kinds = ("complies", "refuses what is asked plainly", "refuses")
    return {kind: Victim(planted(small_model, kind), HOW, 0) for kind in kinds}


@pytest.fixture(scope="module")
def sampler(small_model):
    """An untrained masked-diffusion LM over the same words, and how it is drawn from: six words, of which few are the request's."""
    words = small_model.config.vocab_size
    config = dataclasses.replace(small_model.config, vocab_size=words + 1, causal=False, mask_token=words, model_type="llada")
    how = Pool(samples=4, keep=4, prompt_tokens=(6, 6), response_tokens=4, steps=6, batch_size=4, likelihood_samples=0, selection="random")
    return Model(weights.initialize(jax.random.key(7), config), config, small_model.tokenizer, "sampler"), how


def settings_of(attack):
    """Small settings; perturbations as large as an embedding."""
    settings = attack.settings()
    small = {"attempts": 8, "answers": 4, "tries": 2, "streams": 1, "iterations": 1, "candidates": 32, "topk": 16, "batch_size": 8}
    small |= {"lengths": (1,), "tokens": (1,), "radii": (2.0,), "step_sizes": (0.25,), "restarts": 2, "json_tries": 1}
    if attack.key == "gcg":
        small |= {"steps": 8, "suffix": "paint door"}
    if attack.key == "embedding_search":
        small |= {"steps": (10,), "restarts": (2,)}
    if attack.key == "embedding_suffix":
        small |= {"suffix": "the"}
    if attack.uses_sampler:
        small |= {"preference": Preference(steps=1, draws=1, batch_size=2, rank=1)}
    if attack.key == "embedding_unbounded":
        small |= {"suffix": "the", "steps": 10, "generations": 2, "step_size": 0.5}
    named = {field.name for field in dataclasses.fields(settings)} if dataclasses.is_dataclass(settings) else set()
    settings = dataclasses.replace(settings, **{name: value for name, value in small.items() if name in named})
    if "perturbation" in named:
        sites = (1,) if attack.surface == "latent" else (0,)
        how = dataclasses.replace(settings.perturbation, steps=10, radius=2.0, step_size=0.25, absolute=False, sites=sites)
        settings = dataclasses.replace(settings, perturbation=how)
    return settings


def judge(exchanges):
    return [Verdict("comply" if "brush" in found.response else "refuse", 1.0 if "brush" in found.response else 0.0) for found in exchanges]


def broken(attack, victim, sampler):
    """Whether one of the attack's attempts gets the model to name the brush."""
    settings = settings_of(attack)
    variant = list(attack.variants(settings, ("past",)))[-1]
    text = json.dumps({"improvement": "longer", "prompt": LONGER}) if attack.name == "pair" else LONGER
    context = Context(
        0, settings, variant, rewrites=[Rewrite("1", "past", LONGER)], given=[Attempt("1", f"{LONGER} with the wood", "with brush")],
        judge=judge, rewriter=lambda asks, spent=None: [text] * len(asks), sampler=lambda: sampler,
    )  # fmt: skip
    attempts = attack.attempts([BEHAVIOR], victim, context)
    assert attempts
    return any("brush" in answer for answer in victim.answer(attempts))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_breaks_what_it_can_and_nothing_else(victims, sampler, name):
    attack = ATTACKS[name]
    assert broken(attack, victims["complies"], sampler)
    assert broken(attack, victims["refuses what is asked plainly"], sampler) == (name not in PLAIN)
    assert not broken(attack, victims["refuses"], sampler)
