"""The methods that a run can train and compare. A new one is a file here and a row in METHODS."""

from dat_jax.methods import (
    capo,
    cat,
    circuit_breakers,
    dat,
    derta,
    lat,
    mixat,
    r2d2,
    refusal_sft,
    self_consistency,
    undefended,
)
from dat_jax.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        undefended.METHOD,
        refusal_sft.METHOD,
        derta.METHOD,
        circuit_breakers.METHOD,
        cat.METHOD,
        capo.METHOD,
        lat.METHOD,
        mixat.METHOD,
        r2d2.METHOD,
        self_consistency.METHOD,
        dat.METHOD,
        capo.DISTRIBUTIONAL,
        lat.DISTRIBUTIONAL,
        circuit_breakers.DISTRIBUTIONAL,
        self_consistency.DISTRIBUTIONAL,
    )
}
