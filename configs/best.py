"""The best combination of the league on the embedded world: the quickstart's DAT, alone.

    python -m dat_jax.main --config=configs/best.py --workdir=runs/best --config.seeds=21,22,23,24,25

Prompts sampled for the harmful and for the benign answers, CAT's losses and attack at the embeddings, half of the adversarial rows
perturbed, benign answers held. Over five worlds no other method breaks fewer behaviors. DAT + LAT and a deeper site are not told apart from
it: DAT + LAT costs a third more, the deeper site 1 % more. MixAT costs less and refuses more. The table of what each change does is in
docs/experiments.md, "The best combination".
"""

import pathlib
import runpy


def get_config():
    """Returns the configuration."""
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "quickstart.py"))["get_config"]()
    c.training.methods = ("undefended", "dat")
    return c
