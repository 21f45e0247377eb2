"""The quickstart with the settings of version 0.1.0: no sampled utility, AdamW, eight attack steps within the evaluation's own radius.

    python -m dat_jax.main --config=configs/quickstart_0_1.py --workdir=runs/quickstart_0_1

For numbers in docs/ that were measured with them; configs/quickstart.py is the better one. Minutes on two cores of a laptop.
"""

import pathlib
import runpy

from dat_jax.config import defaults


def get_config():
    """Returns the quickstart's configuration of version 0.1.0."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))["get_config"]()
    c.sampler.update({"samples": 48, "keep": 16, "likelihood_samples": 8, "acceptance": "quota", "consistency": 0.0})
    c.utility.samples = 0
    c.methods.cat = defaults().methods.cat
    c.methods.cat.objective.update({"toward_cutoff": 0.02, "cutoff_over": "token", "away_cutoff": 2.0, "utility_weight": 2.0})
    c.methods.cat.perturbation.update({"steps": 8, "radius": 0.3, "step_size": 0.25, "iterate": "best"})
    c.training.update({"learning_rate": 1.5e-3, "optimizer": "adamw", "watch_every": 50})
    return c
