"""The exported adapter under PEFT on transformers' torch model gives the logits of our unmerged and merged model."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dat_jax import models
from dat_jax.models import lora as adapters
from dat_jax.models import weights
from dat_jax.models.adapters import save_adapter
from dat_jax.models.config import ModelConfig


def trained(config, rank=3, alpha=5.0):
    fresh = adapters.initialize(jax.random.key(0), config, rank, alpha)
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), fresh.factors)
    return fresh.replace(factors=noise)


@pytest.mark.parametrize("name", ["llama3", "phi3", "gemma2"])
def test_adapter_loads_in_peft_with_our_logits(tiny, tmp_path, name):
    peft = pytest.importorskip("peft", reason="compares with PEFT")
    import torch
    import transformers

    _, folder = tiny(name)
    ours = models.load(str(folder))
    lora = trained(ours.config)
    save_adapter(lora, ours.config, str(tmp_path), base=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    adapted = [key for key in theirs.state_dict() if "lora_A" in key]
    assert len(adapted) == ours.config.layers * (4 if name == "phi3" else 7)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 7))
    with torch.no_grad():
        reference = theirs(torch.tensor(tokens), use_cache=False).logits.numpy()
    everywhere = jnp.ones(tokens.shape, bool)
    unmerged = models.logits(ours.params, ours.config, tokens, everywhere, lora)
    merged = models.logits(adapters.merge(ours.params, lora), ours.config, tokens, everywhere)
    plain = models.logits(ours.params, ours.config, tokens, everywhere)
    size = np.abs(reference).max()
    assert np.abs(unmerged - reference).max() <= 1e-5 * size
    assert np.abs(merged - reference).max() <= 1e-5 * size
    assert np.abs(plain - reference).max() > 0.01 * size


def test_llada_adapter_targets_the_layers_but_not_the_head(tmp_path):
    config = ModelConfig(vocab_size=32, width=16, layers=2, heads=2, model_type="llada", causal=False, mask_token=1)
    lora = trained(config)
    save_adapter(lora, config, str(tmp_path), base="llada")
    written = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.transformer.blocks.1.ff_out"
    update = written[f"{key}.lora_B.weight"] @ written[f"{key}.lora_A.weight"]
    expected = (lora.factors["down"]["a"][1] @ lora.factors["down"]["b"][1]).T
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
    assert len(written) == 2 * 2 * 7
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert re.fullmatch(pattern, "model.transformer.blocks.11.ff_out")
    assert not re.fullmatch(pattern, "model.transformer.ff_out")


def test_fresh_adapter_changes_nothing_and_merging_equals_not_merging():
    config = ModelConfig(vocab_size=40, width=24, layers=2, heads=3, kv_heads=1)
    params = weights.initialize(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 40)
    everywhere = jnp.ones((2, 6), bool)
    plain = models.logits(params, config, tokens, everywhere)
    fresh = adapters.initialize(jax.random.key(2), config, rank=4, alpha=16)
    assert fresh.scale == 4.0
    np.testing.assert_array_equal(models.logits(params, config, tokens, everywhere, fresh), plain)
    lora = trained(config)
    unmerged = models.logits(params, config, tokens, everywhere, lora)
    merged = models.logits(adapters.merge(params, lora), config, tokens, everywhere)
    np.testing.assert_allclose(merged, unmerged, rtol=2e-5, atol=2e-5)
    assert np.abs(unmerged - plain).max() > 0.05
    assert adapters.merge(params, None) is params


def test_dropout_leaves_out_input_features_and_keeps_the_mean():
    config = ModelConfig(vocab_size=40, width=2000, layers=1, heads=2, mlp_width=8)
    lora = adapters.Lora(factors={"q": {"a": jnp.ones((1, 2000, 3)), "b": jnp.ones((1, 3, 5))}}, scale=1.0)
    a = np.asarray(adapters.drop(jax.random.key(0), lora, 0.25).factors["q"]["a"])
    assert set(np.unique(a)) == {0.0, np.float32(1 / 0.75)}
    assert (a == a[:, :, :1]).all()
    assert abs(a.mean() - 1) < 0.05
    assert adapters.drop(jax.random.key(0), lora, 0.0) is lora
    with pytest.raises(ValueError, match="rank is 0"):
        adapters.initialize(jax.random.key(0), config, 0, 1.0)
