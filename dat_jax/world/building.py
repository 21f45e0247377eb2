"""Building a world: its files and its two small models, in a folder that then stands where a user's downloads would."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from dat_jax.data import manifest, provenance
from dat_jax.models import huggingface
from dat_jax.models.config import ModelConfig
from dat_jax.settings import read
from dat_jax.world import files, sampler, splits, target, tokenizers
from dat_jax.world.sampler import SamplerSettings
from dat_jax.world.target import TargetSettings

MARKER = "world.json"


@dataclasses.dataclass(frozen=True)
class World:
    """Settings of the embedded world (config.world)."""

    enabled: bool = False  # build a world and use it; otherwise models and data are the user's
    target: TargetSettings = dataclasses.field(default_factory=TargetSettings)
    sampler: SamplerSettings = dataclasses.field(default_factory=SamplerSettings)

    def validate(self, key: str = "world") -> None:
        """Raise ValueError naming the key whose value is not allowed."""
        for group in ("target", "sampler"):
            settings = getattr(self, group)
            for name, value in dataclasses.asdict(settings).items():
                share = name in ("tuning_refusals", "prompt_only")
                if not (0 < value <= 1 if share else value > 0):
                    allowed = "a share above 0, at most 1" if share else "a number > 0"
                    raise ValueError(f"config.{key}.{group}.{name} is {value!r}; allowed: {allowed}")
            if settings.width % (2 * settings.heads):
                allowed = f"a multiple of 2 * heads = {2 * settings.heads}, for rotary pairs"
                raise ValueError(f"config.{key}.{group}.width is {settings.width}; allowed: {allowed}")


def build(folder: str | os.PathLike[str], seed: int, config: Any, report: Callable[[str], None]) -> None:
    """Build the world of this seed in `folder`; a finished one stays as it is, an interrupted one is continued.

    The folder then holds what `files.FILES` lists, and pairs.jsonl, what the models were trained on; world.json comes last. config is the
    sub-config `world` or anything with its keys. Progress goes to `report`, line by line. Raises ValueError when a setting is not allowed
    or the folder holds a world of another seed or other settings, or one of which a file is gone, was cut, damaged or edited.
    """
    settings = read(World, config)
    settings.validate()
    root = pathlib.Path(folder)
    made_with = {"seed": seed, "target": dataclasses.asdict(settings.target), "sampler": dataclasses.asdict(settings.sampler)}
    started, remedy = root / "world_started.json", f"put it back as it was, or delete {root} to build the world again"
    for path in (started, root / MARKER):
        if path.exists():
            found = manifest.load(path, remedy)
            provenance.compare(path, found.content, made_with, "use another folder")
    if (root / MARKER).exists():
        found.check(remedy)
        report(f"world, seed {seed}: done")
        return
    if not started.exists() and any((root / name).exists() for name in ("target", "sampler", "pairs.jsonl")):
        raise ValueError(f"{root / MARKER} is gone: nobody knows what the world there was built with; {remedy}")
    clock = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    manifest.write(started, made_with)
    parts, learned = splits.draw(seed), files.pairs(seed)
    files.write(root, seed, parts, learned)
    pairs = [(row["prompt"], row["response"]) for row in learned]
    if not (root / "target").exists():
        tokenizer = tokenizers.target_tokenizer(seed)
        params, model_config = target.train(seed, parts, pairs, tokenizer, settings.target, report)
        _save(huggingface.Model(params, model_config, tokenizer), root / "target")
    if not (root / "sampler").exists():
        tokenizer = tokenizers.sampler_tokenizer(seed)
        params, model_config = sampler.train(seed, pairs, tokenizer, settings.sampler, report)
        _save(huggingface.Model(params, model_config, tokenizer), root / "sampler")
    models = [f"{name}/{huggingface.MANIFEST}" for name in ("target", "sampler")]  # each of which says what its model's folder holds
    names = [*dict.fromkeys(name for group, _, name in files.FILES if group == "data"), "pairs.jsonl", *models]
    manifest.write(root / MARKER, made_with, {name: manifest.of_file(root / name) for name in names if (root / name).exists()})
    started.unlink()
    report(f"world, seed {seed}: built in {time.monotonic() - clock:.0f} s")


def target_config(config: Any) -> ModelConfig:
    """Return the ModelConfig of the target that a world's sub-config describes, before it is built: the same for every seed."""
    return target.architecture(len(tokenizers.target_tokenizer(0)), read(World, config).target)


def _save(model: huggingface.Model, folder: pathlib.Path) -> None:
    """Write a model beside its place and move it there, so that what stands there is whole."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    huggingface.save(model, str(unfinished))
    unfinished.rename(folder)
