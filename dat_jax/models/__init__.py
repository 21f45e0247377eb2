"""Language models: one transformer, its weights, decoding, and Hugging Face folders in and out."""

from dat_jax.models.huggingface import Model, load, save
from dat_jax.models.transformer import logits

__all__ = ["Model", "load", "logits", "save"]
