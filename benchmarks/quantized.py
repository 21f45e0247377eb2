"""What a LoRA training needs of the host's memory where the frozen weights are in fewer bits, and the loss of its steps.

    python benchmarks/quantized.py --model=FOLDER --dtype=float32
    python benchmarks/quantized.py --model=FOLDER --dtype=nf4

One precision per process. The steps are CAT's, on rows of random tokens. Told in MiB: the weights; `resident`, the most that the process
held, with the pages of the mapped files that it has read; `own`, the most without these; and the same before the model is read, when
Python, jax and transformers are there.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import sys
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from dat_jax import models, sharding
from dat_jax.config import defaults
from dat_jax.data.conversations import lay_out
from dat_jax.data.pipeline import Batch
from dat_jax.methods import METHODS
from dat_jax.models import huggingface
from dat_jax.models.huggingface import PRECISIONS
from dat_jax.training import loop


class Watched(threading.Thread):
    """Asks every few milliseconds how much memory the process holds that is no file's."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            found = re.search(r"RssAnon:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
            self.most = max(self.most, int(found[1]) // 1024)
            time.sleep(0.005)

    def told(self) -> dict[str, int]:
        """The peaks until now."""
        return {"own": self.most, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def rows(random: np.random.Generator, count: int, vocabulary: int, data):
    """Conversations of random tokens that fill their blocks."""
    draw = [[random.integers(3, vocabulary, n).tolist() for _ in range(count)] for n in (data.prompt_length, data.response_length)]
    return lay_out(draw[0], [[True] * data.prompt_length] * count, draw[1], data.prompt_length, data.response_length)


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=PRECISIONS, required=True)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    config, method, random = defaults(), METHODS["cat"], np.random.default_rng(0)
    config.data.update({"prompt_length": 32, "response_length": 16, "adversarial_rows": 2, "utility_rows": 2})
    config.training.update({"steps": 20, "learning_rate": 1e-3})
    config.training.lora.rank, config.methods.cat.perturbation.steps = 8, 2
    huggingface.load_tokenizer(pathlib.Path(options.model), "llama")  # imports transformers
    watched, mesh = Watched(), sharding.make_mesh(1, 1, 1)
    watched.start()
    time.sleep(0.1)
    before = watched.told()
    with jax.set_mesh(mesh):
        model = models.load(options.model, mesh=mesh, dtype=options.dtype)
        loaded = watched.told()
        state = loop.initial_state(model, config.training, 0, mesh)
        settings, step, rule = loop.step_config(model, config, method), loop.compiled_step(state), loop.optimizer(config.training)
        size, losses = model.config.vocab_size, []
        batch = Batch(**{name: rows(random, 2, size, config.data) for name in ("away", "toward", "utility")})
        for _ in range(options.steps):
            state, metrics = step(state, model.params, batch, jax.random.key(0), config=settings, optimizer=rule)
            losses.append(round(float(metrics["loss/total"]), 4))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) >> 20
    found = {"dtype": options.dtype, "weights": size, "before": before, "loaded": loaded, "peak": watched.told(), "losses": losses}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
