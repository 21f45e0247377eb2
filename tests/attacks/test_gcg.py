"""GCG against one-hot gradients, brute force and the text that is sent in the end."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from etils import epath
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from dat_jax import sharding
from dat_jax.attacks import ATTACKS, gcg
from dat_jax.attacks.attack import Attempt, Context
from dat_jax.attacks.victim import Decoding, Victim, lay_out
from dat_jax.config import defaults
from dat_jax.data import conversations
from dat_jax.data.behaviors import Behavior
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.settings import validate
from dat_jax.stations.evaluate import FileStore
from dat_jax.training import suffixes
from dat_jax.training.network import Network, example_mean, response_nll

BEHAVIORS = [Behavior("1", "paint the wood", ("with a brush",), ("x y",)), Behavior("2", "wash the door", ("a b c",), ("z",))]
SMALL = gcg.Settings(steps=5, candidates=24, topk=8, suffix="x x x x", batch_size=8)


def asked(model, mesh=None, **changes):
    how = dict(prompt_length=16, response_length=6, max_new_tokens=4, batch_size=2, temperature=0.0, perturb="user", system=None)
    return Victim(model, Decoding(**(how | changes)), 0, mesh)


def search(victim, settings, behavior=BEHAVIORS[0], seed=0, allowed_V=None):
    """The chat and the finished search of one behavior."""
    chat = gcg.begin(behavior, victim, settings)
    allowed_V = gcg.admissible(victim.model, settings.ascii_only) if allowed_V is None else allowed_V
    return chat, gcg.search(chat, victim, Context(seed, settings), allowed_V)


def nll(victim, prompt, target):
    """Nats per token of a response to a text, the way every other attempt is scored."""
    return -victim.log_likelihood([Attempt("", prompt, target)])[0]


@pytest.mark.parametrize(("weight", "tied"), [(0.0, True), (0.7, False)])
def test_the_gradient_is_that_of_one_hot_tokens(small_model, weight, tied):
    config = dataclasses.replace(small_model.config, tied_head=tied)
    victim = asked(Model(weights.initialize(jax.random.key(1), config), config, small_model.tokenizer))
    chat = gcg.begin(BEHAVIORS[0], victim, dataclasses.replace(SMALL, refusal_weight=weight))
    columns_S, P = gcg._columns(chat, victim)
    network = Network(victim.model.params, None, config, P)
    rows, refused = jax.tree.map(jnp.asarray, (chat.rows, chat.refused))
    assert (refused is None) == (weight == 0)

    def loss(one_hot_SxV):
        def mean_nll(rows):
            one_hot_TxV = jax.nn.one_hot(rows.tokens_BxT[0], config.vocab_size)
            e_TxD = one_hot_TxV.at[columns_S].set(one_hot_SxV) @ network.params["embedding"]
            return example_mean(response_nll(network, e_TxD[None], rows), rows, P)[0]

        return mean_nll(rows) - (weight * mean_nll(refused) if weight else 0.0)

    expected_SxV = jax.jit(jax.grad(loss))(jax.nn.one_hot(chat.suffix_S, config.vocab_size))
    found_BxSxV = jax.jit(suffixes.token_gradient)(network, rows, refused, weight, columns_S)
    assert np.abs(expected_SxV).max() > 1e-4
    np.testing.assert_allclose(found_BxSxV[0], expected_SxV, atol=1e-6)
    allowed_V = gcg.admissible(victim.model, True)
    favored_SxK = gcg.favored(chat, victim, dataclasses.replace(SMALL, refusal_weight=weight), chat.suffix_S, allowed_V)
    order_SxV = np.argsort(np.where(allowed_V, expected_SxV, np.inf), axis=1)
    np.testing.assert_array_equal(np.sort(favored_SxK), np.sort(order_SxV[:, :8]))


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_one_free_token_equals_brute_force(small_model, behavior):
    victim = asked(small_model)
    settings = dataclasses.replace(SMALL, steps=1, candidates=600, topk=100, suffix="x", batch_size=16)
    words = [word for word in small_model.tokenizer.get_vocab() if not word.startswith("<")]
    every = {f"{behavior.text} {word}": nll(victim, f"{behavior.text} {word}", behavior.targets[0]) for word in words}
    (found,) = gcg.attempts([behavior], victim, Context(0, settings))
    assert found == Attempt(behavior.id, min(every, key=every.get), behavior.targets[0])
    assert found.prompt != f"{behavior.text} x"
    _, progress = search(victim, settings, behavior)
    np.testing.assert_allclose(progress.losses, [every[f"{behavior.text} x"], min(every.values())], atol=1e-5)


@pytest.mark.parametrize("settings", [SMALL, dataclasses.replace(SMALL, replaced=2, refusal_weight=0.5)])
def test_the_text_is_split_into_the_tokens_that_were_scored(small_model, settings):
    victim = asked(small_model)
    found = gcg.attempts(BEHAVIORS, victim, Context(0, settings))
    for attempt, behavior in zip(found, BEHAVIORS):
        chat, progress = search(victim, settings, behavior)
        user = [{"role": "user", "content": attempt.prompt}]
        ids, _ = conversations.encode_prompt(small_model.tokenizer, user, "user")
        assert [ids[place] for place in chat.places_S] == progress.best_S.tolist() and len(chat.places_S) == 4
        assert [i for place, i in enumerate(ids) if place not in chat.places_S] == np.delete(chat.ids, chat.places_S).tolist()
        assert attempt.prompt.startswith(f"{behavior.text} ") and not attempt.tokens and not attempt.suffix and attempt.delta is None
        from_text = nll(victim, attempt.prompt, behavior.targets[0])
        if settings.refusal_weight:
            from_text -= settings.refusal_weight * nll(victim, attempt.prompt, behavior.refusals[0])
        np.testing.assert_allclose(progress.losses[-1], from_text, atol=1e-5)


def test_what_cannot_be_sent_is_never_returned(small_model, caplog, monkeypatch):
    victim = asked(small_model)
    chat, progress = search(victim, SMALL)
    caplog.set_level(logging.WARNING)
    best, count = chat.text(small_model.tokenizer, progress.best_S), len(progress.bests_NxS)
    assert len(progress.best_losses) == count > 1 and sorted(progress.best_losses, reverse=True) == progress.best_losses
    assert gcg.confirmed(chat, victim, SMALL, progress) == (best, 0) and not caplog.messages
    # A suffix whose text is split otherwise, and one whose loss as text is another: the latest one that can be confirmed is sent.
    worse = np.concatenate([progress.bests_NxS, np.full((1, 4), small_model.tokenizer.unk_token_id), progress.bests_NxS[:1]])
    longer = dataclasses.replace(progress, bests_NxS=worse, losses=(*progress.losses, progress.losses[-1] - 1, progress.losses[-1] - 2))
    moved = dataclasses.replace(chat, head="paint the wood a ")
    assert gcg.confirmed(chat, victim, SMALL, longer) == (best, 2)
    assert next(message.split(": ")[1] for message in caplog.messages).startswith("a suffix has loss")
    assert gcg.confirmed(moved, victim, SMALL, progress) == ("paint the wood x x x x", count - 1)  # that of the beginning
    assert caplog.messages[-1] == "gcg, 1: a suffix is split into other tokens than were scored; an earlier one is taken"
    # Weights that changed since: nothing has the loss of the search, and the best text is sent.
    other = dataclasses.replace(progress, losses=tuple(loss - 1 for loss in progress.losses))
    assert gcg.confirmed(chat, victim, SMALL, other) == (best, count)
    # An evaluation goes on, and the number stands in the attack's cost.
    monkeypatch.setattr(gcg, "search", lambda *arguments: other)
    context = Context(0, SMALL)
    assert [attempt.prompt for attempt in gcg.attempts(BEHAVIORS[:1], victim, context)] == [best]
    assert context.spent == {"suffixes_passed_over": count}


def test_a_search_that_must_succeed(small_model):
    """Twenty steps have to end below the best of as many random suffixes as twice their candidates."""
    victim, settings = asked(small_model), dataclasses.replace(SMALL, steps=20)
    chat, progress = search(victim, settings)
    random_CxS = np.random.default_rng(0).choice(np.flatnonzero(gcg.admissible(small_model, True)), (2 * 20 * 24, 4))
    assert progress.losses[-1] < gcg.losses_of(chat, victim, settings, random_CxS).min()
    assert progress.losses[-1] < progress.losses[0] - 0.5 and progress.unchanged == 0


def test_a_search_that_must_fail(small_model):
    """Without steps, and on a model that does not see its prompt, the suffix stays what it was."""
    victim = asked(small_model)
    assert [a.prompt for a in gcg.attempts(BEHAVIORS, victim, Context(0, dataclasses.replace(SMALL, steps=0)))] == [
        f"{behavior.text} x x x x" for behavior in BEHAVIORS
    ]
    config = dataclasses.replace(small_model.config, tied_head=False)
    params = weights.initialize(jax.random.key(1), config)
    blind = asked(Model(params | {"embedding": jnp.zeros_like(params["embedding"])}, config, small_model.tokenizer))
    chat, progress = search(blind, SMALL)
    assert len(set(progress.losses)) == 1 and chat.text(small_model.tokenizer, progress.best_S) == "paint the wood x x x x"
    nothing = asked(Model(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params), config, small_model.tokenizer))
    assert gcg.attempts(BEHAVIORS[:1], nothing, Context(0, SMALL))[0].prompt == "paint the wood x x x x"


class Store(FileStore):
    """The evaluation's store; it remembers all states, and is killed after some of them."""

    def __init__(self, folder, kill_after=0):
        super().__init__(epath.Path(folder) / "x.progress.npz", ["1", "2"])
        self.states, self.left = [], kill_after

    def save(self, arrays):
        super().save(arrays)
        self.states.append(dict(arrays))
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def assert_same_states(found, expected):
    assert len(found) == len(expected)
    for state, other in zip(found, expected):
        assert set(state) == set(other)
        for name in state:
            np.testing.assert_array_equal(state[name], other[name], name)


def test_a_killed_search_goes_on_where_it_was(small_model, monkeypatch, tmp_path):
    monkeypatch.setattr(gcg, "SAVE_EVERY", 2)
    victim, whole = asked(small_model), Store(tmp_path)
    expected = gcg.attempts(BEHAVIORS, victim, Context(0, SMALL, store=whole))
    assert len(whole.states) == 2 * (2 + 1) and ["losses" in state for state in whole.states] == [True, True, False] * 2
    for kill_after in (1, 2, 3, 5):
        whole.clear()
        killed, again = Store(tmp_path, kill_after), Store(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            gcg.attempts(BEHAVIORS, victim, Context(0, SMALL, store=killed))
        assert gcg.attempts(BEHAVIORS, victim, Context(0, SMALL, store=again)) == expected
        assert_same_states([*killed.states, *again.states], whole.states)
    assert expected == gcg.attempts(BEHAVIORS, victim, Context(0, SMALL))
    assert expected[1:] == gcg.attempts(BEHAVIORS[1:], victim, Context(0, SMALL))  # whatever stands beside it


def test_a_state_of_other_settings_is_not_used(small_model, tmp_path):
    victim, settings = asked(small_model), dataclasses.replace(SMALL, steps=2)
    done = Store(tmp_path)
    expected = gcg.attempts(BEHAVIORS, victim, Context(0, settings, store=done))
    other = dataclasses.replace(settings, suffix="y y y y")
    assert gcg.attempts(BEHAVIORS, victim, Context(0, other, store=Store(tmp_path)))[0].prompt != expected[0].prompt
    Store(tmp_path).save(done.states[-1])
    again = Store(tmp_path)
    assert gcg.attempts(BEHAVIORS, victim, Context(0, dataclasses.replace(settings, batch_size=4), store=again)) == expected
    assert again.states == []  # all was there: the size of a batch is no other setting


def test_losses_never_rise_with_more_steps(small_model):
    victim = asked(small_model)
    _, few = search(victim, SMALL)
    _, many = search(victim, dataclasses.replace(SMALL, steps=15))
    assert many.losses[:6] == few.losses and len(many.losses) == 16
    assert all(after <= before for before, after in zip(many.losses, many.losses[1:])) and many.losses[-1] < many.losses[0]
    _, other = search(victim, SMALL, seed=1)
    assert other.losses != few.losses


@pytest.fixture(scope="module")
def joining() -> Model:
    """A model whose tokenizer joins letters and blanks, and whose template writes a "b" right behind the user's words."""
    letters = ["<pad>", "<end>", "<assistant>", "Ġ", "a", "b", "c", "x", "Ġx", "Ġa", "ab", "é"]
    merges = [("Ġ", "x"), ("Ġ", "a"), ("a", "b")]
    inner = Tokenizer(tokenizer_models.BPE({token: i for i, token in enumerate(letters)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(letters[:3])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] | trim }}{{ 'b' if m['role'] == 'user' }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    config = ModelConfig(vocab_size=16, width=16, layers=1, heads=2, remat=False)  # more rows than tokens
    return Model(weights.initialize(jax.random.key(2), config), config, tokenizer)


def test_candidates_that_are_split_otherwise_are_dropped(joining):
    victim, behavior = asked(joining), Behavior("1", "c", ("x a",), ("b",))
    chat = gcg.begin(behavior, victim, dataclasses.replace(SMALL, suffix="x x"))
    id_of = joining.tokenizer.get_vocab()

    def ids(*tokens):
        return np.array([id_of[token] for token in tokens])

    assert chat.suffix_S.tolist() == ids("Ġx", "Ġx").tolist() and chat.head == "c"
    fates = {
        ("Ġx", "c"): True,
        ("Ġa", "b"): True,  # "a" has joined with the blank before
        ("Ġx", "Ġa"): True,
        ("Ġx", "a"): False,  # joins with the "b" of the template
        ("x", "Ġx"): False,  # no blank between request and suffix
        ("Ġ", "c"): True,
        ("Ġ", "x"): False,  # joins with each other
        ("Ġx", "Ġ"): False,  # the template trims it
        ("c", "Ġx"): False,
    }
    candidates = np.stack([ids(*tokens) for tokens in fates])
    kept = gcg.sendable(chat, joining.tokenizer, None, np.concatenate([candidates, candidates]))
    np.testing.assert_array_equal(kept, candidates[list(fates.values())])  # each once
    assert chat.text(joining.tokenizer, ids("Ġa", "b")) == "c ab"

    settings = dataclasses.replace(SMALL, suffix="x x", steps=6)
    (found,) = gcg.attempts([behavior], victim, Context(0, settings))
    assert found.prompt.startswith("c ") and len(found.prompt) > 3
    only_a = np.arange(16) == id_of["a"]
    chat, progress = search(victim, settings, behavior, allowed_V=np.arange(16) == id_of["x"])
    assert progress.unchanged == 0  # "Ġx", "x"
    chat, progress = search(victim, settings, behavior, allowed_V=only_a)
    assert progress.unchanged == 6 and len(progress.losses) == 7 and len(set(progress.losses)) == 1
    assert chat.text(joining.tokenizer, progress.best_S) == "c x x"


def test_which_tokens_may_be_drawn(joining, small_model):
    tokenizer = joining.tokenizer
    allowed = {tokenizer.convert_ids_to_tokens(int(token)) for token in np.flatnonzero(gcg.admissible(joining, True))}
    assert allowed == {"Ġ", "a", "b", "c", "x", "Ġx", "Ġa", "ab"}  # no control token, no lone byte, no row without a token
    every = {tokenizer.convert_ids_to_tokens(int(token)) for token in np.flatnonzero(gcg.admissible(joining, False))}
    assert every == allowed | {"é"}
    assert gcg.admissible(small_model, True).sum() == 36
    inner = Tokenizer(tokenizer_models.WordLevel({"<unk>": 0, "<end>": 1, "ü": 2}, unk_token="<unk>"))
    foreign = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    with pytest.raises(ValueError, match=r"config\.attacks\.gcg\.ascii_only is True; the tokenizer of '' has no such token"):
        gcg.admissible(Model({"embedding": np.zeros((3, 4))}, None, foreign), True)


def test_drawn_candidates_replace_as_many_places_by_favored_tokens():
    suffix_S, favored_SxK = np.array([100, 101, 102, 103]), np.arange(12).reshape(4, 3)
    drawn_CxS = gcg.draw(suffix_S, favored_SxK, 500, 2, np.random.default_rng(0))
    changed_CxS = drawn_CxS != suffix_S
    assert drawn_CxS.shape == (500, 4) and (changed_CxS.sum(axis=1) == 2).all()
    for place in range(4):
        assert set(drawn_CxS[changed_CxS[:, place], place]) == set(favored_SxK[place])
    assert suffix_S.tolist() == [100, 101, 102, 103]


def test_the_adaptive_term_is_its_formula(small_model):
    victim, behavior = asked(small_model), BEHAVIORS[0]
    for refusal in ("", "did the people"):
        settings = dataclasses.replace(SMALL, refusal_weight=0.8, refusal=refusal)
        chat, progress = search(victim, settings)
        suffixes = np.stack([chat.suffix_S, progress.best_S])
        prompts = [chat.text(small_model.tokenizer, suffix_S) for suffix_S in suffixes]
        expected = [nll(victim, p, behavior.targets[0]) - 0.8 * nll(victim, p, refusal or behavior.refusals[0]) for p in prompts]
        np.testing.assert_allclose(gcg.losses_of(chat, victim, settings, suffixes), expected, atol=1e-5)
        np.testing.assert_allclose([progress.losses[0], progress.losses[-1]], expected, atol=1e-5)
    plain, _ = search(victim, SMALL)
    assert plain.refused is None
    assert abs(gcg.losses_of(plain, victim, SMALL, chat.suffix_S[None])[0] - nll(victim, prompts[0], behavior.targets[0])) < 1e-5


def test_a_mesh_gives_the_same(small_model):
    expected = gcg.attempts(BEHAVIORS, asked(small_model), Context(0, SMALL))
    mesh = sharding.make_mesh(2, 2, 1)
    with jax.set_mesh(mesh):
        assert gcg.attempts(BEHAVIORS, asked(small_model, mesh, batch_size=4), Context(0, SMALL)) == expected
        with pytest.raises(ValueError, match="a batch of 6 rows does not divide by"):
            gcg.attempts(BEHAVIORS, asked(small_model, mesh), Context(0, dataclasses.replace(SMALL, batch_size=6)))


def test_two_compilations_whatever_the_number_of_behaviors_and_survivors(small_model):
    victim = asked(small_model)
    gcg.attempts(BEHAVIORS[:1], victim, Context(0, SMALL))
    before = gcg.suffix_losses._cache_size(), gcg.favored_tokens._cache_size()
    gcg.attempts(BEHAVIORS, victim, Context(3, dataclasses.replace(SMALL, steps=7, candidates=13)))
    assert (gcg.suffix_losses._cache_size(), gcg.favored_tokens._cache_size()) == before


def test_the_row_and_its_settings():
    row = ATTACKS["gcg"]
    assert (row.surface, row.adaptive, row.uses_target, row.choices) == ("text", True, True, ("batch_size",))
    assert list(ATTACKS)[list(ATTACKS).index("gcg") + 1] == "prefill"  # the last on text: it needs the weights
    assert row.read_settings(defaults()) == gcg.Settings()
    assert (gcg.Settings().steps, gcg.Settings().candidates, gcg.Settings().topk) == (250, 512, 256)


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", -1), ("candidates", 0), ("topk", 0), ("replaced", 0), ("batch_size", 0), ("suffix", ""), ("suffix", " x"), ("suffix", "x\n"),
     ("refusal_weight", -0.1)],
)  # fmt: skip
def test_settings_that_cannot_be(key, value):
    with pytest.raises(ValueError, match=rf"config\.attacks\.gcg\.{key} is "):
        validate(dataclasses.replace(gcg.Settings(), **{key: value}), "attacks.gcg")


def test_more_replaced_tokens_than_the_suffix_has(small_model):
    with pytest.raises(ValueError, match=r"config\.attacks\.gcg\.replaced is 5; allowed: at most the 4 tokens"):
        gcg.attempts(BEHAVIORS, asked(small_model), Context(0, dataclasses.replace(SMALL, replaced=5)))


def test_a_prompt_of_several_blocks(small_model):
    """The suffix stands where it is, whatever padding is in front of it."""
    long, short = asked(small_model), asked(small_model, prompt_length=6)
    assert lay_out(small_model.tokenizer, [Attempt("", "paint the wood x x x x", "a")], short.decoding, False)[0].tokens_BxT.shape[1] == 18
    assert gcg.attempts(BEHAVIORS, long, Context(0, SMALL)) == gcg.attempts(BEHAVIORS, short, Context(0, SMALL))
