"""The target as it came: what every defence is compared with."""

from dat_jax.methods.method import Method

METHOD = Method(name="undefended", title="Undefended", color="#8a9099")
