"""Language models: one transformer, its weights, decoding, and Hugging Face folders in and out."""

from dat_jax.models.transformer import logits

__all__ = ["logits"]
