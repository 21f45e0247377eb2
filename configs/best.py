"""The best combination of the league on the embedded world: the quickstart's DAT, alone.

    python -m dat_jax.main --config=configs/best.py --workdir=runs/best --config.seeds=21,22,23,24,25

Prompts sampled for the harmful and for the benign answers, CAT's losses and attack at the embeddings, half of the adversarial rows
perturbed, benign answers held. Over five worlds nothing that was tried breaks less, and what breaks as little costs more or refuses more.
The table of what each change does is in docs/experiments.md, "The best combination".
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))["get_config"]()
    c.training.methods = ("undefended", "dat")
    return c
