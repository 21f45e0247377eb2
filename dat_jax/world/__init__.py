"""The embedded world: a small language with forbidden requests, its two models and its exact judge, in place of downloads."""

from dat_jax.world.building import World, build, target_config
from dat_jax.world.files import FILES

__all__ = ["FILES", "World", "build", "target_config"]
