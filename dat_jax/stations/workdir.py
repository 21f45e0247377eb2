"""The work directory: what a run writes where, and what the folder was made with.

workdir/config.json                          the configuration; another one is refused
workdir/seed_<s>/world/                      the embedded world's models and files, where it is used
workdir/seed_<s>/prompts/                    the prompt pool: prompts.jsonl, cost.json; round_<r>/ those drawn during the training
workdir/seed_<s>/<method>/                   checkpoints, metrics.jsonl, events, finished.json
workdir/seed_<s>/answers/<subject>/          per attack its answers (.jsonl) and what they were made with (.json); utility/ likewise
workdir/seed_<s>/verdicts/<judge>/<subject>/ the judge's verdicts on each file of answers
workdir/seed_<s>/export/<method>/            Hugging Face folders (--mode=export)
workdir/results.json report.md report.html
workdir/formats/<format>/seed_<s>/         the answers in other tools' formats (config.report.formats)
"""

import json
import zlib

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dat_jax.data import files, provenance
from dat_jax.settings import dotted

# Keys that may change between two calls with one workdir: they change where or how long a run works, or what is evaluated. Files of the
# evaluation know for themselves what they were made with.
FREE = (
    "mesh.", "topology", "seeds", "training.methods", "training.save_every", "training.keep", "training.log_every", "evaluation.",
    "attacks.", "judges.", "report.", "rewriter.", "data.eval_", "data.rewrites", "data.benign", "data.borderline",
)  # fmt: skip


def default(config_file: str) -> str:
    """The workdir of a call that names none: runs/ and the config file's name."""
    return f"runs/{epath.Path(config_file.split(':')[0]).stem}"


def check_claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises ValueError naming the first key in which the workdir's config.json differs from this config."""
    path = workdir / "config.json"
    if path.exists():
        wanted = dict(dotted(config))
        provenance.compare(workdir, files.read_json(str(path)), wanted, "use another --workdir", FREE, "config.")


def check_agreement(config: ConfigDict) -> None:
    """Raises ValueError unless all processes have one configuration; also, nobody claims a workdir before everybody has checked it."""
    text = json.dumps(dict(dotted(config)), default=str)
    sums = np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))
    if len(set(sums.tolist())) > 1:
        raise ValueError(f"the {len(sums)} processes were started with {len(set(sums.tolist()))} configurations; allowed: the same for all")


def claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes config.json, by which later calls know what the folder was made with."""
    if jax.process_index() == 0:
        files.write_text(workdir / "config.json", json.dumps(dict(dotted(config)), default=str, indent=1, ensure_ascii=False) + "\n")
