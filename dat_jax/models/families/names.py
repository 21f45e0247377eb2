"""Where each weight of ours lies in a checkpoint: a tensor's name, and the rows taken from it when several are fused."""

from __future__ import annotations

import dataclasses

from dat_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows [first, last) of the tensor `name` ({} stands for the layer); last None is the whole tensor. Matrices lie (out, in)."""

    name: str
    first: int = 0
    last: int | None = None


Names = dict[str, Part]  # our path, such as "layers/q" -> its place in the checkpoint


def llama_names(config: ModelConfig, prefix: str = "model.") -> Names:
    """Return the names that Llama introduced and most families share; biases, norms and head as far as the config has them."""
    layer = prefix + "layers.{}."
    names = {
        "embedding": prefix + "embed_tokens.weight",
        "final_norm": prefix + "norm.weight",
        "layers/attention_norm": layer + "input_layernorm.weight",
        "layers/mlp_norm": layer + "post_attention_layernorm.weight",
        "layers/gate": layer + "mlp.gate_proj.weight",
        "layers/up": layer + "mlp.up_proj.weight",
        "layers/down": layer + "mlp.down_proj.weight",
    }
    for name in ("q", "k", "v", "o"):
        names[f"layers/{name}"] = layer + f"self_attn.{name}_proj.weight"
    if config.qkv_bias:
        names |= {f"layers/{name}_bias": layer + f"self_attn.{name}_proj.bias" for name in ("q", "k", "v")}
    if config.qk_norm:
        names |= {f"layers/{name}_norm": layer + f"self_attn.{name}_norm.weight" for name in ("q", "k")}
    if config.post_norms:
        names["layers/post_attention_norm"] = layer + "post_attention_layernorm.weight"
        names["layers/mlp_norm"] = layer + "pre_feedforward_layernorm.weight"
        names["layers/post_mlp_norm"] = layer + "post_feedforward_layernorm.weight"
    if not config.tied_head:
        names["head"] = "lm_head.weight"
    return {path: Part(name) for path, name in names.items()}
