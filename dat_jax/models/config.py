"""The one description of a language model: its sizes and the switches in which the families differ."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to longer contexts, as in the Hugging Face key of the same name.

    kind is "linear" (factor), "llama3" (factor, low and high frequency factors, original_length) or "longrope" (short and long
    factor per frequency, chosen by whether the sequence is longer than original_length; attention_factor scales cos and sin).
    """

    kind: str
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a transformer; hashable, so that it can be a static argument of a jitted function.

    The defaults are those of Llama: `ModelConfig(vocab_size=512, width=64, layers=2, heads=4)` is a complete small model.
    Fields left at 0 are derived: kv_heads from heads, head_dim from width / heads, mlp_width as 4 * width.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    model_type: str = "llama"
    causal: bool = True
    tied_head: bool = False
    activation: str = "silu"  # "silu" | "gelu_tanh" | "gelu"
    norm_epsilon: float = 1e-5
    norm_plus_one: bool = False  # Gemma scales by 1 + weight
    post_norms: bool = False  # Gemma 2 and 3 also normalize what a sublayer adds to the residual stream
    qkv_bias: bool = False
    qk_norm: bool = False
    query_scale: float | None = None  # factor on attention scores; None is head_dim ** -0.5
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float | None = None  # Gemma multiplies embeddings by sqrt(width)
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None  # Gemma 3: local layers rotate with this base, unscaled
    sliding_window: int | None = None  # in positions, the query's own included
    local_layers: tuple[bool, ...] = ()  # which layers see only the window; empty: none
    logit_shift: bool = False  # Dream: the token at position i is predicted by the logits at i - 1
    mask_token: int | None = None  # masked-diffusion models only
    max_length: int = 0  # positions the model was made for; 0: unknown
    compute_dtype: str = "float32"  # operands of matrix products; the residual stream keeps the dtype of the embeddings
    attention: str = "xla"  # "xla" | "splash"
    remat: bool = True  # recompute each layer in the backward pass
    keep_products: bool = False  # with remat: keep the results of a layer's matrix products and recompute the rest

    def __post_init__(self) -> None:
        """Fill in derived sizes and reject sizes that do not fit together (ValueError)."""
        for name in ("vocab_size", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: an integer >= 1")
        fill = {"kv_heads": self.heads, "head_dim": self.width // self.heads, "mlp_width": 4 * self.width}
        for name, value in fill.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.mask_token is not None and not 0 <= self.mask_token < self.vocab_size:
            raise ValueError(f"mask_token={self.mask_token}; allowed: an id of the vocabulary, which has {self.vocab_size}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding needs pairs")
        if self.activation not in ("silu", "gelu_tanh", "gelu"):
            raise ValueError(f"activation={self.activation!r}; allowed: 'silu', 'gelu_tanh', 'gelu'")
        if self.local_layers and len(self.local_layers) != self.layers:
            raise ValueError(f"local_layers has {len(self.local_layers)} entries for {self.layers} layers")
        if any(self.local_layers) and not self.sliding_window:
            raise ValueError("local_layers are given without a sliding_window")
