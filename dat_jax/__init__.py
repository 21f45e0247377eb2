"""Distributional Adversarial Training for LLMs, in JAX for TPUs."""
