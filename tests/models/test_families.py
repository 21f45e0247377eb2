"""Every causal family against transformers' own torch model, and the masked-diffusion families against recorded references."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax import models
from dat_jax.models import families, transformer

TOLERANCE = 1e-5  # of the largest logit, in float32


def padded(vocab, seed=0):
    """Three rows of length 11: whole, left-padded by 4, right-padded by 3."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (3, 11))
    valid = np.ones((3, 11), bool)
    valid[1, :4] = valid[2, 8:] = False
    return tokens, valid


def torch_positions(valid):
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0)


def test_logits_and_embedding_gradients_equal_transformers(tiny, case):
    model, folder = tiny(case)
    import torch

    ours = models.load(str(folder))
    tokens, valid = padded(ours.config.vocab_size)
    embeddings = model.get_input_embeddings()(torch.tensor(tokens)).detach().requires_grad_()
    mask, positions = torch.tensor(valid.astype(np.int64)), torch.tensor(torch_positions(valid))
    theirs = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False).logits
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32) * valid[..., None]
    (theirs * torch.tensor(weights)).sum().backward()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def probe(e_BxTxD):
        logits = transformer.head(ours.params, ours.config, transformer.hidden(ours.params, ours.config, e_BxTxD, jnp.asarray(valid)))
        return (logits * weights).sum(), logits

    rows = transformer.embed(ours.params, ours.config, tokens)
    (_, logits), gradient = jax.jit(probe)(rows)
    reference = theirs.detach().numpy()
    assert np.abs(logits - reference)[valid].max() <= TOLERANCE * np.abs(reference[valid]).max()
    # Gemma 3 in transformers scales inside its embedding, ours afterwards: the chain rule relates the two gradients
    scale = float(embeddings.detach().numpy()[0, 0, 0] / rows[0, 0, 0])
    reference = embeddings.grad.numpy() * scale
    assert np.isfinite(gradient).all()
    assert np.abs(gradient - reference)[valid].max() <= 3 * TOLERANCE * np.abs(reference[valid]).max()


def test_phi3_short_sequences_use_the_short_factors(tiny):
    model, folder = tiny("phi3_longrope")
    import torch

    ours = models.load(str(folder))
    tokens = np.random.default_rng(0).integers(0, 96, (2, 8))
    reference = model(torch.tensor(tokens), use_cache=False).logits.detach().numpy()
    logits = models.logits(ours.params, ours.config, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    assert np.abs(logits - reference).max() <= TOLERANCE * np.abs(reference).max()


@pytest.mark.parametrize("name", ["llada_tiny/mha", "llada_tiny/gqa", "dream_tiny/checkpoint"])
def test_diffusion_logits_equal_the_recorded_reference(golden, name):
    model = models.load(str(golden / name))
    family, kind = name.split("/")
    prefix = f"{kind}." if family == "llada_tiny" else ""
    with np.load(golden / family / "logits.npz") as file:
        arrays = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    logits = jax.jit(models.logits, static_argnums=1)
    full = logits(model.params, model.config, arrays["full.input_ids"], np.ones(arrays["full.input_ids"].shape, bool))
    assert np.abs(full - arrays["full.logits"]).max() <= 3e-5
    for case in ("leftpad", "rightpad"):
        if f"{case}.input_ids" in arrays:
            valid = arrays[f"{case}.attention_mask"].astype(bool)
            found = logits(model.params, model.config, arrays[f"{case}.input_ids"], valid)
            assert np.abs(found - arrays[f"{case}.logits"])[valid].max() <= 3e-5


def test_illada_is_an_uncausal_tied_llama(tiny, tmp_path):
    """iLLaDA's published code is Llama's layer with full attention; transformers' Llama under an open mask stands for it."""
    model, folder = tiny("llama3_tied")
    import torch

    fields = json.loads((folder / "config.json").read_text())
    fields |= {"model_type": "illada", "architectures": ["ILLaDAForCausalLM"], "rope_theta": 10000.0, "rope_scaling": None}
    for key in ("rope_parameters", "mask_token_id"):
        fields.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    ours = models.load(str(tmp_path))
    assert (ours.config.mask_token, ours.config.causal, ours.config.tied_head) == (5, False, True)
    tokens, valid = padded(96)
    bias = torch.where(torch.tensor(valid)[:, None, None, :].expand(-1, 1, 11, -1), 0.0, torch.finfo(torch.float32).min)
    positions = torch.tensor(torch_positions(valid))
    reference = model(torch.tensor(tokens), attention_mask=bias, position_ids=positions, use_cache=False).logits.detach().numpy()
    logits = models.logits(ours.params, ours.config, jnp.asarray(tokens), jnp.asarray(valid))
    assert np.abs(logits - reference)[valid].max() <= TOLERANCE * np.abs(reference).max()


def test_published_configs_map_to_the_published_sizes():
    """Keys as in the files on the hub, of the ages at which those were written."""
    llama = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8, "intermediate_size": 14336, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
             "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                              "original_max_position_embeddings": 8192}, "max_position_embeddings": 131072}  # fmt: skip
    config = families.read(llama)
    assert (config.rope_theta, config.head_dim, config.tied_head) == (500000.0, 128, False)
    assert (config.rope_scaling.kind, config.rope_scaling.factor, config.rope_scaling.original_length) == ("llama3", 8.0, 8192)
    gemma2 = {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8,
              "head_dim": 256, "intermediate_size": 14336, "vocab_size": 256000, "query_pre_attn_scalar": 256, "sliding_window": 4096,
              "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
              "rope_theta": 10000.0}  # fmt: skip
    config = families.read(gemma2)
    assert (config.local_layers[:3], config.tied_head, config.query_scale) == ((True, False, True), True, 1 / 16)
    assert (config.attention_softcap, config.logit_softcap, config.activation) == (50.0, 30.0, "gelu_tanh")
    gemma3 = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
              "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}  # fmt: skip
    config = families.read(gemma3)
    assert (config.vocab_size, config.local_layers[4:7], config.rope_theta) == (262208, (True, False, True), 1e6)
    assert (config.rope_local_theta, config.rope_scaling.factor, config.sliding_window) == (1e4, 8.0, 1024)
    phi3 = {"model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "intermediate_size": 8192, "vocab_size": 32064, "sliding_window": 2047, "rope_theta": 10000.0}  # fmt: skip
    assert families.read(phi3).local_layers == (True,) * 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model_type=None"),
        ({"model_type": "bloom"}, "model_type 'bloom' is not supported"),
        ({"model_type": "llada"}, "no 'n_heads'"),
        ({"model_type": "llada", "alibi": True}, "alibi=True"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn'"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "llama", "hidden_act": "relu"}, "hidden_act='relu'"),
        ({"model_type": "illada", "layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ],
)
def test_what_a_config_cannot_say_is_one_error_that_names_it(fields, message):
    with pytest.raises(ValueError, match=message):
        families.read(fields)
