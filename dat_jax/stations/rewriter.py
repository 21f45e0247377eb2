"""The rewriter: a language model of the user's that writes prompts for attacks which ask it to."""

import functools
import logging
from collections.abc import Callable, Sequence

from dat_jax import models
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.stations.inputs import Inputs, configured


def rewriter(inputs: Inputs, mesh) -> Callable[[Sequence[str]], list[str]] | None:
    """Returns a function from instructions to the texts of config.rewriter.model, which it loads when first called; None without one.

    Raises ValueError, naming the model, for an instruction that gets no text: an attack never goes on with a prompt that was not rewritten.
    """
    group = inputs.config.rewriter
    if not group.model:
        return None
    how = Decoding(
        prompt_length=group.prompt_length, response_length=1, max_new_tokens=group.max_new_tokens,
        batch_size=inputs.config.evaluation.batch_size, temperature=group.temperature, perturb="user", system=None,
    )  # fmt: skip

    @functools.cache
    def victim() -> Victim:
        logging.info("rewriter: loading %s", group.model)
        return Victim(configured(models.load(group.model, mesh=mesh, dtype=group.dtype), inputs.config.target), how, inputs.seed, mesh)

    def rewrite(instructions: Sequence[str]) -> list[str]:
        texts = victim().answer([Attempt(str(number), text, "") for number, text in enumerate(instructions)])
        for instruction, text in zip(instructions, texts):
            if not text.strip():
                raise ValueError(
                    f"config.rewriter.model {group.model!r} gave no text for {instruction!r:.80}; allowed: a model that answers"
                )
        return texts

    return rewrite
