"""The command that turns a causal LM into a sampler: what it makes of weights and tokenizer, the folder it leaves, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from dat_jax.diffusion import adapt
from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.models import huggingface, transformer
from dat_jax.models.attention import partly_open

VERBS, THINGS = ("paint", "wash", "brush"), "abcdefghijklmnop"
PAIRS = [(f"how did people {verb} the {thing}", f"{verb} the {thing} with the brush") for verb in VERBS for thing in THINGS]
OPTIONS = ("--steps=24", "--batch_size=8", "--shown=2", "--longest_prompt=8", "--shortest_prompt=4", "--response_tokens=8",
           "--learning_rate=0.01", "--separator= door ", "--validation=0.2", "--validate_every=8", "--save_every=5")  # fmt: skip


def silent(_):
    """Says nothing."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, small_model):
    """A folder with a causal LM, `base`, and its pairs."""
    folder = tmp_path_factory.mktemp("adapt")
    huggingface.save(dataclasses.replace(small_model, source=""), str(folder / "base"))
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS))
    return folder


@pytest.fixture(scope="module")
def call(files):
    """Calls the command as far as its arguments; returns the output folder."""

    def run(name, *options, report=silent):
        values = flags.FlagValues()
        adapt.define_flags(values)
        given = [f"--model={files}/base", f"--pairs={files}/pairs.jsonl", f"--output={files / name}", *OPTIONS, *options]
        values(["adapt", *given])
        adapt.make(values, report)
        return files / name

    return run


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def whole(call, lines):
    """A sampler made in one go, all weights, its mask opened over the first ten steps."""
    return call("whole", "--anneal_steps=10", report=lines.append)


def test_the_folder_is_a_dream_whose_bound_is_better(whole, lines, small_model):
    fields = json.loads((whole / "config.json").read_text())
    assert (fields["model_type"], fields["logit_shift"], fields["qkv_bias"]) == ("Dream", True, False)
    sampler = huggingface.load(str(whole))
    size = small_model.config.vocab_size
    mask = sampler.tokenizer.mask_token_id
    assert (sampler.tokenizer.mask_token, mask, sampler.config.mask_token, fields["mask_token_id"]) == ("<|mask|>", size, size, size)
    assert sampler.tokenizer.bos_token == sampler.tokenizer.eos_token == "<end>"  # the base has no BOS
    assert sampler.params["embedding"].shape[0] == -(-(size + 1) // 8) * 8
    found = json.loads((whole / adapt.MARKER).read_text())["bounds"]
    assert found["after"]["prompt_given_response"] > found["before"]["prompt_given_response"] + 0.5  # nats per token
    measured = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in measured if "bound/prompt_given_response" in line] == [8, 16, 24] and len(measured) == 24
    assert measured[-1]["bound/prompt_given_response"] == pytest.approx(found["after"]["prompt_given_response"], abs=1e-5)
    assert list((whole / "events").iterdir())
    assert "Made from `base` on" in (whole / "README.md").read_text()
    shown = [line for line in lines if "<-" in line]
    assert len(shown) == 6 and not any("<|mask|>" in line for line in shown) and "of memory at most" in lines[-1]
    assert any("steps/s" in line and "s left" in line for line in lines)


def test_later_tokens_matter_and_logits_are_shifted(whole):
    sampler = huggingface.load(str(whole))
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 40, (1, 7)))
    valid = jnp.ones(tokens.shape, bool)
    logits = jax.jit(transformer.logits, static_argnums=1)
    plain = logits(sampler.params, sampler.config, tokens, valid)
    other = logits(sampler.params, sampler.config, tokens.at[0, 6].set((tokens[0, 6] + 1) % 40), valid)
    assert np.abs(plain[0, 0] - other[0, 0]).max() > 1e-4  # a causal model's first logits know nothing of the last token
    read = masked_logits(sampler.params, sampler.config, tokens, valid)
    np.testing.assert_allclose(read[0, 1:], plain[0, :-1], atol=1e-5)


def test_a_killed_call_goes_on_to_the_same_folder(call, whole, files):
    def killed(line):
        if "step 14/24" in line:
            raise KeyboardInterrupt

    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        call("cut", "--anneal_steps=10", report=killed)
    with pytest.raises(ValueError, match=r"adaptation\.json was made with rank = 0, now it is 2; use another --output"):
        call("cut", "--anneal_steps=10", "--rank=2")
    cut = call("cut", "--anneal_steps=10", "--save_every=7", report=heard.append)  # how often is no matter
    assert "sampler: goes on after step 10" in heard
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    for name in ("model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "README.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    heard.clear()
    call("cut", "--anneal_steps=10", report=heard.append)  # finished: nothing is trained again
    assert len(heard) == 7
    weights = bytearray((cut / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (cut / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        call("cut", "--anneal_steps=10")


def test_a_killed_call_with_low_rank_factors_goes_on_to_the_same_weights(call):
    def killed(line):
        if "step 6/8" in line:
            raise KeyboardInterrupt

    options = ("--rank=2", "--steps=8", "--save_every=2", "--validate_every=0")
    with pytest.raises(KeyboardInterrupt):
        call("cut low", *options, report=killed)
    heard: list[str] = []
    cut, once = call("cut low", *options, report=heard.append), call("once low", *options)
    assert "sampler: goes on after step 4" in heard
    assert (cut / "model.safetensors").read_bytes() == (once / "model.safetensors").read_bytes()


def test_pairs_of_others_are_what_is_measured_and_shown(call, files):
    apart = [("how did people wash the zebra", "wash the zebra with the brush"), ("how did people paint the zoo", "paint the zoo")]
    (files / "apart.jsonl").write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in apart))
    heard: list[str] = []
    folder = call("apart", f"--validation_pairs={files / 'apart.jsonl'}", "--steps=2", "--validate_every=0", report=heard.append)
    bounds = json.loads((folder / adapt.MARKER).read_text())["bounds"]
    assert bounds["rows"] == len(PAIRS) and bounds["held_out"] == 2
    shown = [line for line in heard if "<-" in line]
    assert [line.split("'")[1] for line in shown] == [apart[0][1]] * 3 + [apart[1][1]] * 3
    with pytest.raises(ValueError, match="use another --output"):
        call("apart", "--steps=2", "--validate_every=0")


def test_low_rank_factors_are_merged(call, files, small_model):
    """What the network with factors says at the end is what the written folder says; embeddings but the mask's are the base's."""
    base = adapt.read_base(str(files / "base"), "", [], False)
    config = adapt.dream.adapted(base.config, base.tokenizer.mask_token_id, False, 20)
    start = adapt.grown(huggingface.load(str(base.folder)).params, config, base.known)
    np.testing.assert_allclose(start["embedding"][config.mask_token], start["embedding"][: base.known].mean(0), atol=1e-6)
    trained, frozen, join = adapt.trainable(start, config, 2, jax.random.key(0))
    for one, two in zip(jax.tree.leaves(join(trained, frozen)), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(one, two)  # fresh factors change nothing
    heard: list[str] = []
    low = huggingface.load(str(call("low", "--rank=2", "--nologit_shift", "--steps=8", report=heard.append)))
    assert not low.config.logit_shift
    changed = np.abs(np.asarray(low.params["embedding"]) - np.asarray(start["embedding"])).max(1) > 0
    assert np.flatnonzero(changed).tolist() == [config.mask_token]
    update = np.asarray(low.params["layers"]["q"] - start["layers"]["q"])[0]
    assert np.linalg.matrix_rank(update, tol=1e-4 * np.linalg.norm(update)) == 2
    assert "0.00" in next(line for line in heard if "are trained" in line)  # M weights


def test_the_mask_is_opened_by_shares():
    draw = jax.jit(partly_open, static_argnums=1)
    causal = np.tri(40, dtype=bool)
    np.testing.assert_array_equal(draw(jax.random.key(0), 40, 0.0), causal)
    np.testing.assert_array_equal(draw(jax.random.key(0), 40, 1.0), np.ones((40, 40), bool))
    half = np.asarray(draw(jax.random.key(0), 40, 0.5))
    assert half[causal].all() and abs(half[~causal].mean() - 0.5) < 0.06


def test_a_closed_mask_is_the_causal_model(small_model):
    """The bidirectional network under a share of 0 says what the causal one says."""
    free = dataclasses.replace(small_model.config, causal=False)
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, 40, (2, 9)))
    valid = jnp.ones(tokens.shape, bool)
    e = transformer.embed(small_model.params, free, tokens)
    closed = transformer.hidden(small_model.params, free, e, valid, open_TxT=partly_open(jax.random.key(0), 9, jnp.zeros(())))
    np.testing.assert_allclose(closed, transformer.hidden(small_model.params, small_model.config, e, valid), atol=1e-5)


def test_a_mask_token_that_nothing_uses(small_model):
    import copy

    tokenizer = copy.deepcopy(small_model.tokenizer)
    assert adapt.mask_token(tokenizer, "", []) == "<|mask|>"  # <user> and <assistant> are not read as the template spells them
    assert adapt.mask_token(tokenizer, "", ["a <|mask|> in a text"]) == "<|mask_0|>"
    tokenizer.add_tokens(["<reserved>"], special_tokens=True)
    assert adapt.mask_token(tokenizer, "", []) == "<reserved>"
    assert adapt.mask_token(tokenizer, "<own>", []) == "<own>"
    for name, why in (("<end>", "a special token with a role"), ("paint", "the pairs or the separator spell it")):
        with pytest.raises(ValueError, match=f"--mask_token={name} is used: .*{why}"):
            adapt.mask_token(tokenizer, name, ["how to paint"])


def test_what_cannot_be_adapted_is_said_before_anything_is_made(call, files, whole, tmp_path):
    def folder(name, **changes):
        (tmp_path / name).mkdir()
        fields = json.loads((files / "base" / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(fields | changes))
        return f"--model={tmp_path / name}"

    def pairs(name, row):
        (tmp_path / name).write_text("".join(json.dumps(row(i)) + "\n" for i in range(30)))
        return f"--pairs={tmp_path / name}"

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for option, wanted in (
        (folder("masked", model_type="bert"), "model_type 'bert' is not supported"),
        (folder("judge", architectures=["LlamaForSequenceClassification"]), r"allowed: a causal LM \(\.\.\.ForCausalLM\)"),
        (f"--model={whole}", "a 'Dream' model is a masked-diffusion LM already; use it as config.sampler.model"),
        (folder("phi", model_type="phi3", architectures=["Phi3ForCausalLM"]), "a 'phi3' model does not fit Dream's layout; allowed: llama"),
        (folder("untold"), "has no tokenizer.json"),
        (pairs("other.jsonl", lambda i: {"question": f"q{i}"}), "other.jsonl, line 1: no key 'messages'; found: question"),
        (pairs("long.jsonl", lambda i: {"prompt": f"a b c d e f g h i {i}", "response": f"a {i}"}), "all .* prompts have more than"),
        (pairs("few.jsonl", lambda i: {"prompt": f"a {i}", "response": "a"}), "few.jsonl: 30 different exchanges with 1 responses"),
        ("--mask_token=paint", "--mask_token=paint is used"),
        (f"--output={tmp_path / 'mine'}", r"mine is not empty, and no adaptation\.json"),
    ):
        with pytest.raises(ValueError, match=wanted):
            call("never", option)
    assert not (files / "never").exists()
