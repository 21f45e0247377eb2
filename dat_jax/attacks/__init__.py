"""The attacks of the evaluation, in the order in which they are run and reported. A new one is a file here and a row in ATTACKS."""

from dat_jax.attacks import (
    best_of_n,
    direct,
    embedding,
    embedding_prefill,
    embedding_search,
    embedding_step_sizes,
    embedding_suffix,
    embedding_text,
    gcg,
    given,
    latent,
    pair,
    persuasion,
    prefill,
    rewrite,
    tense,
    translation,
)
from dat_jax.attacks.attack import Attack

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        direct.ATTACK,
        direct.SAMPLES,
        rewrite.ATTACK,
        tense.ATTACK,
        translation.ATTACK,
        persuasion.ATTACK,
        best_of_n.ATTACK,
        given.TEMPLATES,
        given.INFILLING,
        given.TEST_CASES,
        pair.ATTACK,
        gcg.ATTACK,
        prefill.ATTACK,
        prefill.ON_REWRITES,
        prefill.LENGTHS,
        prefill.TOKENS,
        given.REPLAY,
        embedding.ATTACK,
        embedding.ON_REWRITES,
        embedding_text.ATTACK,
        embedding_step_sizes.ATTACK,
        embedding.RADII,
        embedding_search.STEPS,
        embedding_search.RESTARTS,
        embedding_suffix.ATTACK,
        embedding_prefill.ATTACK,
        latent.ATTACK,
        latent.ON_REWRITES,
        latent.SITES,
    )
}
