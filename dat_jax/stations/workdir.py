"""The work directory: what a run writes where, and what the folder was made with.

workdir/config.json                          the configuration; another one is refused
workdir/lock.json                            while a call works: who it is; see lock.py
workdir/inputs.json                          checksums of what was trained on: the user's files and models; other ones are refused
workdir/seed_<s>/world/                      the embedded world's models and files, where it is used
workdir/seed_<s>/prompts/                    the prompt pool: prompts.jsonl, cost.json; round_<r>/ those drawn during the training
workdir/seed_<s>/rewriter/                   what the rewriter was asked and replied
workdir/seed_<s>/<method>/                   checkpoints, metrics.jsonl, events, finished.json; plan.json with training.flops
workdir/seed_<s>/answers/<subject>.plan.json what the subject is going to be asked, for the report of a run that goes on
workdir/seed_<s>/answers/<subject>/          per attack its answers (.jsonl) and what they were made with (.json); utility/ likewise
workdir/seed_<s>/measures/<subject>/         likelihoods of targets, chats and choices (.jsonl) and what they were made with (.json)
workdir/seed_<s>/verdicts/<judge>/<subject>/ the judge's verdicts on each file of answers
workdir/seed_<s>/export/<method>/            Hugging Face folders (--mode=export)
workdir/results.json report.md report.html   (and comparison.json, .md, .html of several workdirs: config.report.compare)
workdir/compilation_cache/                   compiled programs
workdir/formats/<format>/seed_<s>/           the answers in other tools' formats (config.report.formats)

Each of these is checked when it is read, see data/manifest.py.
"""

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dat_jax.config import defaults
from dat_jax.data import behaviors, manifest, provenance
from dat_jax.data.answers import checksum
from dat_jax.methods import METHODS
from dat_jax.models import huggingface
from dat_jax.settings import dotted
from dat_jax.stations import subjects

CONFIG, INPUTS = "config.json", "inputs.json"
# The user's files, in a run that trains: what is trained on, and what a checkpoint is chosen by.
TRAINED_ON = (
    "data.behaviors", "data.targets", "data.safe_responses", "data.train_rewrites", "data.chats", "data.watch_behaviors",
    "data.watch_targets",
)  # fmt: skip
BACK = "put it back as it was, or use another --workdir"
MODELS = ("target.model", "target.checkpoint", "sampler.model")

# Keys that may change between two calls with one workdir: they change where or how long a run works, or what is evaluated. Files of the
# evaluation know for themselves what they were made with.
FREE = (
    "mesh.", "topology", "seeds", "training.methods", "training.save_every", "training.keep", "training.log_every", "training.faults",
    "evaluation.", "attacks.", "judges.", "report.", "rewriter.", "serve.", "data.eval_", "data.rewrites", "data.benign", "data.borderline",
    "data.unsafe", "data.heldout_chats", "data.task",
)  # fmt: skip

# Groups and keys that came later, and leave everything as it was at their defaults: a workdir that does not know them goes on.
LATER = ("sampler.preference.", "sampler.request_share", "sampler.mend", "methods.mixat.share", "training.flops")


def default(config_file: str) -> str:
    """The workdir of a call that names none: runs/ and the config file's name."""
    return f"runs/{epath.Path(config_file.split(':')[0]).stem}"


def keep_programs(workdir: epath.Path) -> None:
    """Keeps compiled programs below the workdir, or where jax's own variable JAX_COMPILATION_CACHE_DIR says, for several workdirs."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))


def check_claim(workdir: epath.Path, config: ConfigDict) -> dict[str, list[dict[str, Any]]]:
    """Raises ValueError naming the first key in which the workdir's config.json differs from this config, or whose file's content does.

    A path may change where the content is known to be the same, so that a workdir goes on where it and its models were moved or copied to.
    Returns the contents, for `claim`.
    """
    path, now = workdir / CONFIG, contents(config)
    if not path.exists():
        begun = (workdir / INPUTS).exists() and any(found.name != "world" for found in workdir.glob("seed_*/*"))
        if begun or any(workdir.glob("seed_*/*/checkpoints")):
            raise ValueError(f"{path} is gone: nobody knows what was made there with which settings; {BACK}")
        return now
    found = manifest.load(path, BACK)
    if found.part is not None and not (workdir / INPUTS).exists():
        raise ValueError(f"{workdir / INPUTS} is gone: nobody knows which files were trained on; {BACK}")
    recorded = manifest.load(workdir / INPUTS, BACK).content if (workdir / INPUTS).exists() else {}
    if not recorded and found.part is None:
        logging.warning("%s: an earlier version wrote it: whether the files that were trained on were edited since is not known", workdir)
    for key, entries in now.items():
        if key in recorded:
            check_input(workdir, key, recorded[key], entries)
    same = tuple(key for key in now if key in recorded)
    later = {key: value for key, value in dotted(defaults()) if key.startswith(LATER)}
    provenance.compare(workdir, later | found.content, dict(dotted(config)), "use another --workdir", FREE + same, "config.")
    return now


def check_input(workdir: epath.Path, key: str, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Raises ValueError naming the first file of a key whose content is not what the workdir was begun with, with both checksums."""
    for was, found in zip(before, now):
        if was["checksum"] != found["checksum"]:
            raise ValueError(
                f"config.{key}: {found['file']} is not what {workdir} was begun with: its checksum was {was['checksum']}, now it is "
                f"{found['checksum']}; put the file back as it was, or use another --workdir"
            )
    if len(before) != len(now):
        raise ValueError(f"config.{key} names {len(now)} files, and {workdir} was begun with {len(before)}; allowed: the same ones")


def contents(config: ConfigDict) -> dict[str, list[dict[str, Any]]]:
    """Returns the file names and checksums behind each key that a training depends on; a key whose content is not at hand is left out.

    Not at hand is what the embedded world makes, which world.json knows, models of the hub or a bucket, and what is not there.
    """
    if config.world.enabled:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    trains = any(METHODS[name].trains for name in config.training.methods)
    for key in TRAINED_ON if trains else ():
        named = config.data[key.partition(".")[2]]
        paths = [epath.Path(path) for path in ([named] if key == "data.chats" and named else behaviors.paths(named))]
        if paths and all(path.exists() for path in paths):
            found[key] = [{"file": str(path), "checksum": _content(path)} for path in paths]
    for key in MODELS:
        group, name = key.split(".")
        source = config[group][name]
        if source and (known := _model(source)):
            found[key] = [{"file": source, "checksum": known}]
    return found


def _content(path: epath.Path) -> str:
    """The checksum of a file, or of all files of a folder."""
    entries = manifest.of_folder(path) if path.is_dir() else {"": manifest.of_file(path)}
    return entries[""]["checksum"] if "" in entries else manifest.of_json(entries)


def _model(source: str) -> str | None:
    """The checksum of a training folder's end, or of a local model folder: samples of its weights, and the small files beside them."""
    if subjects.is_checkpoint(source):
        return subjects.content(subjects.identity(source))
    weights = huggingface.weights_identity(source)
    if weights is None:
        return None
    beside = [path for path in sorted(pathlib.Path(source).iterdir()) if path.suffix in huggingface.CARRIED and path.is_file()]
    return checksum(weights, [[path.name, manifest.of_file(path)] for path in beside if path.name != huggingface.MANIFEST])


def check_agreement(config: ConfigDict) -> None:
    """Raises ValueError unless all processes have one configuration; also, nobody claims a workdir before everybody has checked it."""
    text = json.dumps(dict(dotted(config)), default=str)
    sums = np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))
    if len(set(sums.tolist())) > 1:
        raise ValueError(f"the {len(sums)} processes were started with {len(set(sums.tolist()))} configurations; allowed: the same for all")


@contextlib.contextmanager
def returned(workdir: epath.Path) -> Iterator[None]:
    """Takes back a claim that was made in the block when that ends with a ValueError and nothing else was written for a seed."""
    before = (workdir / CONFIG).exists()
    try:
        yield
    except ValueError:
        if jax.process_index() == 0 and not before and not any(names for seed in workdir.glob("seed_*") for _, _, names in seed.walk()):
            for name in (CONFIG, INPUTS):
                (workdir / name).unlink(missing_ok=True)
        raise


def claim(workdir: epath.Path, config: ConfigDict, now: dict[str, list[dict[str, Any]]] | None = None) -> None:
    """Writes inputs.json where it lacks a key, and then config.json, by which later calls know what the folder was made with.

    now: what `check_claim` returned, not to read the files again.
    """
    if jax.process_index() != 0:
        return
    path = workdir / INPUTS
    begun = path.exists() and (workdir / CONFIG).exists()  # without config.json a call was killed between the two, and nothing is made yet
    before = manifest.load(path, BACK).content if begun else {}
    now = contents(config) if now is None else now
    if not begun or now.keys() - before.keys():
        manifest.write(path, now | before)
    manifest.write(workdir / CONFIG, dict(dotted(config)))
