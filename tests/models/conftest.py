"""Random tiny checkpoints of every causal family, written by transformers itself."""

import math
import pathlib

import pytest

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.5, 3.0, 7.0]}
LONG = {"max_position_embeddings": 64, "original_max_position_embeddings": 8, "rope_scaling": LONGROPE}

# name -> (transformers' config class, what differs from SIZES)
CASES = {
    "llama2": ("LlamaConfig", {}),
    "llama3": ("LlamaConfig", {"num_key_value_heads": 2, "rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 256}),
    "llama3_tied": ("LlamaConfig", {"num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 16}),
    "llama_linear": ("LlamaConfig", {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 4}),
    "zephyr": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2Config", {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2, "sliding_window": 5}),
    "phi3_longrope": ("Phi3Config", {"num_key_value_heads": 4, **LONG}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "sliding_window": 4, "query_pre_attn_scalar": 12}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_key_value_heads": 2, "sliding_window": 4, "query_pre_attn_scalar": 12, "sliding_window_pattern": 2,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
}  # fmt: skip


def randomize(model, seed=0):
    """Give every tensor values of a size at which all parts of the model matter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 2:
                tensor.copy_(noise / math.sqrt(tensor.shape[1]))
            elif "norm" in name and "Gemma" not in type(model).__name__:
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.2 * noise)


def tiny_model(name, **changes):
    """A torch model of a case, float32, with plain (eager) attention."""
    import transformers

    kind, differences = CASES[name]
    sizes = {key: value for key, value in SIZES.items() if not (kind == "Phi3Config" and key == "head_dim")}
    config = getattr(transformers, kind)(**(sizes | NO_TOKENS | differences | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model)
    return model.eval()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return (torch model, folder it was saved to) of a case, made once."""
    pytest.importorskip("torch", reason="compares with transformers' torch models")
    made = {}

    def make(name) -> tuple[object, pathlib.Path]:
        if name not in made:
            model = tiny_model(name)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return make


@pytest.fixture(params=CASES)
def case(request):
    """Each case's name in turn."""
    return request.param
