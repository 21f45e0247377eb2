"""The methods that a run can train and compare. A new one is a file here and a row in METHODS."""

from dat_jax.methods import cat, dat, undefended
from dat_jax.methods.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (undefended.METHOD, cat.METHOD, dat.METHOD)}
