"""The configuration of `--mode=serve` where no --config is given: no data, nothing trained, and blocks for chats of middle length.

    python -m dat_jax.main --mode=serve --config.target.model=FOLDER_OR_HUB_ID

Any other configuration serves its target, too. docs/serving.md has the keys.
"""

from dat_jax.config import defaults


def get_config():
    """Returns the configuration that serves `target.model`."""
    c = defaults()
    c.training.methods = ()
    c.data.prompt_length = 256  # tokens; a prompt may have 8 times as many
    c.evaluation.update({"max_new_tokens": 512, "batch_size": 8})
    return c
