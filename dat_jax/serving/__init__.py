"""A model behind the API of OpenAI: requests in, batches through the decoder, answers out. `stations/serve.py` starts it."""

import itertools
import pathlib
from collections.abc import Sequence

CONFIG = str(pathlib.Path(__file__).parent / "serve.py")  # of `--mode=serve` without a --config


def with_config(arguments: Sequence[str]) -> list[str]:
    """Returns a command line with --config=CONFIG in front where it serves and names no configuration."""
    words = [argument.lstrip("-") for argument in arguments]
    serves = "mode=serve" in words or ("mode", "serve") in itertools.pairwise(words)
    named = any(word == "config" or word.startswith("config=") for word in words)
    return [f"--config={CONFIG}", *arguments] if serves and not named else list(arguments)
