"""LLaDA-8B (Base, Instruct, 1.5) and iLLaDA-8B: masked-diffusion LMs, a Llama without the causal mask."""

from __future__ import annotations

from dat_jax.models.config import ModelConfig
from dat_jax.models.families import llama
from dat_jax.models.families.fields import Fields, need, only, rope
from dat_jax.models.families.names import Names, Part, llama_names

MODEL_TYPES = ("llada", "illada")

ILLADA_MASK_TOKEN = 5  # stated in the model's README alone; neither its config nor its tokenizer has it

TENSORS = {
    "embedding": "wte", "final_norm": "ln_f", "head": "ff_out",
    "layers/attention_norm": "attn_norm", "layers/mlp_norm": "ff_norm", "layers/q": "q_proj", "layers/k": "k_proj",
    "layers/v": "v_proj", "layers/o": "attn_out", "layers/gate": "ff_proj", "layers/up": "up_proj", "layers/down": "ff_out",
}  # fmt: skip

FIXED = {
    "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms", "alibi": False, "rope": True,
    "attention_layer_norm": False, "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False,
    "layer_norm_with_affine": True, "input_emb_norm": False, "scale_logits": False, "block_group_size": 1,
}  # fmt: skip


def read(fields: Fields) -> ModelConfig:
    """Map LLaDA's or iLLaDA's config.json to a ModelConfig."""
    if need(fields, "model_type") == "illada":
        return _read_illada(fields)
    only(fields, FIXED)
    heads = need(fields, "n_heads")
    theta, scaling = rope(fields, {"rope_theta": need(fields, "rope_theta"), **(fields.get("rope_scaling") or {})})
    return ModelConfig(
        vocab_size=fields.get("embedding_size") or need(fields, "vocab_size"),
        width=need(fields, "d_model"),
        layers=need(fields, "n_layers"),
        heads=heads,
        kv_heads=fields.get("n_kv_heads") or (1 if fields.get("multi_query_attention") else heads),
        mlp_width=fields.get("mlp_hidden_size") or need(fields, "mlp_ratio") * need(fields, "d_model"),
        norm_epsilon=need(fields, "rms_norm_eps"),
        tied_head=bool(fields.get("weight_tying")),
        rope_theta=theta,
        rope_scaling=scaling,
        model_type="llada",
        causal=False,
        mask_token=need(fields, "mask_token_id"),
        max_length=fields.get("max_sequence_length") or 0,
    )


def _read_illada(fields: Fields) -> ModelConfig:
    if fields.get("layer_norm_eps") is not None:
        raise ValueError(f"config.json (model_type 'illada') has layer_norm_eps={fields['layer_norm_eps']!r}; supported: null")
    only(fields, {"attention_bias": False, "mlp_bias": False})
    parameters = {"rope_theta": need(fields, "rope_theta"), **(fields.get("rope_scaling") or {})}
    shape = llama.shape({**fields, "rope_parameters": parameters})
    mask = fields.get("mask_token_id")
    return ModelConfig(**shape, model_type="illada", causal=False, mask_token=ILLADA_MASK_TOKEN if mask is None else mask)


def names(config: ModelConfig) -> Names:
    """Return LLaDA's names, which repeat `ff_out` for the head and the MLP; iLLaDA has Llama's."""
    if config.model_type == "illada":
        return llama_names(config)
    layer = "model.transformer.blocks.{}."
    places = {path: (layer if path.startswith("layers/") else "model.transformer.") + name for path, name in TENSORS.items()}
    if config.tied_head:
        del places["head"]
    return {path: Part(f"{name}.weight") for path, name in places.items()}


def describe(config: ModelConfig) -> Fields:
    """Return the config.json of a LLaDA model made here, with the keys of the published ones."""
    if config.model_type != "llada" or config.rope_scaling or config.head_dim * config.heads != config.width:
        raise ValueError(f"a new {config.model_type!r} model cannot be written; a LLaDA without rope scaling can")
    return FIXED | {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "mlp_hidden_size": config.mlp_width,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_length or 2048,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_full_precision": True,
        "weight_tying": config.tied_head,
        "mask_token_id": config.mask_token,
    }
