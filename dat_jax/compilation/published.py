"""The config.json contents of published models that can be compiled for without a download (fields that shape the program)."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from dat_jax.models import families, huggingface
from dat_jax.models.config import ModelConfig

LLAMA_3_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_2_5_14B = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "intermediate_size": 13824, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "use_sliding_window": False,
}  # fmt: skip
GEMMA_2_9B = {
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "sliding_window": 4096, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
LLADA_8B = {
    "model_type": "llada", "embedding_size": 126464, "vocab_size": 126464, "d_model": 4096, "n_layers": 32, "n_heads": 32,
    "n_kv_heads": 32, "mlp_hidden_size": 12288, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "weight_tying": False,
    "mask_token_id": 126336, "max_sequence_length": 4096,
}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "Qwen/Qwen2.5-14B-Instruct": QWEN_2_5_14B,
    "google/gemma-2-9b-it": GEMMA_2_9B,
    "GSAI-ML/LLaDA-8B-Base": LLADA_8B,
    "GSAI-ML/LLaDA-8B-Instruct": LLADA_8B,
}


def architecture(group: Any) -> ModelConfig:
    """The model of `config.target` or `config.sampler`: of a folder's config.json, of the table here, or of the hub's config.json.

    No weights are read. Raises ValueError naming the model when none of the three has it, and where `huggingface.read_fields` does.
    """
    if (pathlib.Path(group.model) / "config.json").is_file():
        fields = huggingface.read_fields(pathlib.Path(group.model))
    elif group.model in MODELS:
        fields = MODELS[group.model]
    else:
        import huggingface_hub

        try:
            folder = pathlib.Path(huggingface_hub.hf_hub_download(group.model, "config.json")).parent
        except Exception as error:
            raise ValueError(f"{group.model!r} is no folder, not among {sorted(MODELS)}, and the hub gave none: {error}") from error
        fields = huggingface.read_fields(folder)
    return dataclasses.replace(families.read(fields), compute_dtype=group.compute_dtype, attention=group.attention)
