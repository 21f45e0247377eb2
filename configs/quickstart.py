from dat_jax.config import defaults
def get_config():
    c = defaults(); c.world.enabled=True
    return c
