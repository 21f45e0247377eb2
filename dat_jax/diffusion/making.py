"""What the commands that make a sampler share: options, the folder that they claim and leave, the prompts they show, how they end."""

import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath

from dat_jax.data import manifest, provenance
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord
from dat_jax.diffusion import pool as pool_lib
from dat_jax.diffusion.layout import template
from dat_jax.models import huggingface
from dat_jax.models.huggingface import Model
from dat_jax.settings import LARGEST, LARGEST_INTEGER

LAYOUT = ("shortest_prompt", "longest_prompt", "response_tokens", "separator")  # options that say how a row is laid out


def define_flags(into: flags.FlagValues, integers: Sequence[tuple[str, int, str]], learning_rate: float, validate_every: int) -> None:
    """The options that every command has, `integers` of its own (name, default, meaning), and its defaults where they differ."""
    about_output = "folder of the sampler: new, empty, or of an interrupted call with the same options"
    flags.DEFINE_string("output", None, about_output, required=True, flag_values=into)
    for name, value, meaning in (
        *integers,
        ("save_every", 200, "steps between saved states, from which an interrupted call goes on"),
        ("shortest_prompt", 8, "tokens, as config.sampler.prompt_tokens; of the prompts that are shown"),
        ("longest_prompt", 24, "tokens, as config.sampler.prompt_tokens; pairs with longer ones are left out"),
        ("response_tokens", 40, "as config.sampler.response_tokens; longer responses are cut"),
        ("shown", 6, "answers, kept out of the training, for which prompts are shown at the end"),
    ):
        flags.DEFINE_integer(name, value, meaning, 1, LARGEST.get(name, LARGEST_INTEGER), flag_values=into)
    flags.DEFINE_integer("seed", 0, "of everything that is drawn", lower_bound=0, flag_values=into)
    about_validation = "steps between held-out bounds in metrics.jsonl and TensorBoard's events; 0: before and after alone"
    flags.DEFINE_integer("validate_every", validate_every, about_validation, 0, LARGEST_INTEGER, flag_values=into)
    flags.DEFINE_float("learning_rate", learning_rate, "peak, in AdamW", lower_bound=1e-9, flag_values=into)
    flags.DEFINE_float("prompt_only", 0.75, "share of the rows in which the prompt alone is masked", 0.0, 1.0, flag_values=into)
    flags.DEFINE_string("separator", pool_lib.Pool.separator, "between prompt and response, as config.sampler.separator", flag_values=into)


def pool(values: flags.FlagValues) -> pool_lib.Pool:
    """The layout that the options ask for, and three prompts for each response that is shown."""
    lengths = (min(values.shortest_prompt, values.longest_prompt), values.longest_prompt)
    return pool_lib.Pool(
        samples=3, keep=1, prompt_tokens=lengths, response_tokens=values.response_tokens, separator=values.separator, batch_size=3
    )


def claim(marker: epath.Path, arguments: dict[str, Any]) -> bool:
    """Claims the marker's folder for these arguments; returns whether the sampler in it is finished already.

    Raises ValueError when it holds something else, or a sampler made with other arguments, naming the first that differs.
    """
    output = marker.parent
    if not marker.exists():
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"--output={output} is not empty, and no {marker.name} in it says that this command made it")
        manifest.write(marker, {"arguments": arguments})
        return False
    found = manifest.load(marker, f"put it back as it was, or delete {output} to make the sampler again").content
    provenance.compare(marker, found["arguments"], arguments, "use another --output")
    return "bounds" in found


def finish(model: Model, marker: epath.Path, about: dict[str, Any]) -> None:
    """Writes the model's folder and then the marker, whose bounds say that it is complete."""
    for half_written in marker.parent.glob("*.safetensors"):
        half_written.unlink()
    huggingface.save(model, str(marker.parent))
    manifest.write(marker, about)


def set_apart(pairs: Sequence[tuple[str, str]], shown: int, seed: int, file: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs to train on, and `shown` responses that none of them has.

    Raises ValueError naming the file where there are fewer than ten pairs and two responses for each that is shown.
    """
    responses = list(dict.fromkeys(response for _, response in pairs))
    if len(pairs) < 10 * shown or len(responses) < 2 * shown:
        raise ValueError(
            f"{file}: {len(pairs)} different exchanges with {len(responses)} responses; allowed: at least {10 * shown} with {2 * shown} "
            "(10 and 2 x --shown)"
        )
    chosen = [responses[i] for i in np.random.default_rng(seed).permutation(len(responses))[:shown]]
    apart = set(chosen)
    return [pair for pair in pairs if pair[1] not in apart], chosen


def show(model: Model, pool: pool_lib.Pool, responses: Sequence[str], seed: int) -> list[PromptRecord]:
    """Returns `pool.samples` prompts sampled for each response."""
    around = template(model.tokenizer, pool.separator, pool.begin)
    forbidden = pool_lib.forbidden_tokens(model.tokenizer, model.config.vocab_size, model.tokenizer.mask_token_id)
    behaviors = [Behavior(str(number), "", (response,), ()) for number, response in enumerate(responses)]
    return pool_lib.draw(pool, model, behaviors, around, forbidden, seed, 0)[0]


def show_all(folder: str, pool: pool_lib.Pool, responses: Sequence[str], seed: int, report: Callable[[str], None]) -> None:
    """Reads a finished folder back, and reports prompts sampled for each response."""
    for record in show(huggingface.load(folder), pool, responses, seed):
        report(f"{record.response[:70]!r:<75} <- {record.prompt!r}")


def peak_memory() -> str:
    """The most memory that was in use: the first device's where it counts it, else this process's."""
    counted = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        return f"{counted['peak_bytes_in_use'] / 2**30:.1f} GiB of device memory at most"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB of memory at most"


def run(make: Callable[[flags.FlagValues, Callable[[str], None]], None], argv: list[str]) -> int:
    """A command's `main`: makes the sampler, with its lines on stdout; returns the exit status, and says a user's error in one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --output=FOLDER", 2)
    logging.set_verbosity(logging.WARNING)  # Orbax speaks through absl's logger
    try:
        make(flags.FLAGS, lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    return 0
