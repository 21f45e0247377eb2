"""The command that trains a sampler from a chat file: its tokenizer, and the folder it leaves."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from dat_jax.diffusion import making, pretrain
from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.diffusion.learning import Learning
from dat_jax.diffusion.pool import Pool
from dat_jax.models import huggingface

VERBS = ("bake", "paint", "sell", "find", "fold", "clean")
THINGS = ("the bread", "a boat", "the café", "an old door", "two hats")
PAIRS = [(f"How do I {v} {t}?", f"To {v} {t}, wait.") for v in VERBS for t in THINGS]
POOL = Pool(samples=2, keep=1, prompt_tokens=(3, 12), response_tokens=12, batch_size=2, likelihood_samples=0)


def silent(_):
    """Says nothing."""


def test_tokenizer_holds_any_text():
    tokenizer = pretrain.train_tokenizer([text for pair in PAIRS for text in pair], 300)
    assert len(tokenizer) == 300
    for text in ("How do I paint a boat?", "naïve 東京 🙂", " two  spaces\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id}) == 4
    with pytest.raises(ValueError, match="the vocabulary is 100; allowed: at least 260"):
        pretrain.train_tokenizer(["a"], 100)


@pytest.fixture
def call(tmp_path):
    """Calls the command as far as its arguments, with its folder's name, other options and what hears its lines."""
    chats = [{"prompt": prompt, "response": response} for prompt, response in PAIRS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    sizes = ("--vocabulary=300", "--width=32", "--layers=2", "--heads=2", "--batch_size=8", "--shown=2")
    lengths = ("--longest_prompt=12", "--response_tokens=12")

    def run(name, *options, report=silent):
        values = flags.FlagValues()
        pretrain.define_flags(values)
        values(["pretrain", f"--chats={tmp_path}/chats.jsonl", f"--output={tmp_path / name}", "--steps=20", *sizes, *lengths, *options])
        pretrain.make(values, report)
        return tmp_path / name

    return run


def test_a_killed_call_goes_on_to_the_same_folder(call, tmp_path):
    def killed(line):
        if "step 14/20" in line:
            raise KeyboardInterrupt

    lines: list[str] = []
    whole = call("whole")
    with pytest.raises(KeyboardInterrupt):
        call("cut", "--save_every=5", report=killed)
    with pytest.raises(ValueError, match=r"pretraining\.json was made with width = 32, now it is 64; use another --output"):
        call("cut", "--width=64")
    cut = call("cut", "--save_every=3", report=lines.append)  # how often is no matter
    assert "sampler: goes on after step 10" in lines
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in cut.iterdir()) == names and "model.safetensors" in names and "state" not in names
    for name in set(names) - {"pretraining.json"}:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    made = [json.loads((folder / "pretraining.json").read_text()) for folder in (whole, cut)]
    assert made[0]["bounds"] == made[1]["bounds"] and made[0]["arguments"] == made[1]["arguments"]

    shown = [line for line in lines if "<-" in line]
    lines.clear()
    call("cut", report=lines.append)  # finished: nothing is trained again
    assert [line for line in lines if "<-" in line] == shown and len(shown) == 6 and len(lines) == 7
    with pytest.raises(ValueError, match=r"was made with seed = 0, now it is 1; use another --output"):
        call("cut", "--seed=1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine is not empty, and no pretraining\.json"):
        call("mine")


def test_trained_folder_is_a_llada_that_reads_back(tmp_path):
    sizes, settings = pretrain.Sizes(300, 32, 2, 2), Learning(steps=30, batch_size=8, learning_rate=3e-3)
    model, bounds = pretrain.train(PAIRS, sizes, POOL, settings, 0, silent)
    assert bounds["after"]["prompt_given_response"] > bounds["before"]["prompt_given_response"] + 0.5  # nats per token
    huggingface.save(model, str(tmp_path / "sampler"))
    fields = json.loads((tmp_path / "sampler" / "config.json").read_text())
    assert (fields["model_type"], fields["d_model"], fields["weight_tying"]) == ("llada", 32, True)
    assert fields["mask_token_id"] == model.tokenizer.mask_token_id
    again = huggingface.load(str(tmp_path / "sampler"))
    wanted = dataclasses.replace(model.config, remat=again.config.remat)  # how it is computed is not what it is
    assert again.config == wanted
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 9)))
    logits = jax.jit(masked_logits, static_argnums=1)
    valid = jnp.ones(tokens.shape, bool)
    np.testing.assert_allclose(logits(again.params, again.config, tokens, valid), logits(model.params, wanted, tokens, valid), atol=1e-5)
    shown = making.show(again, POOL, [PAIRS[0][1], PAIRS[7][1]], seed=0)
    assert [record.response for record in shown] == [PAIRS[0][1]] * 2 + [PAIRS[7][1]] * 2
    assert all(record.prompt and "<|" not in record.prompt for record in shown)
