"""Export: each trained method as a Hugging Face folder, and beside it its LoRA factors alone as a PEFT adapter of the base model."""

import logging

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dat_jax import models
from dat_jax.data import files, manifest
from dat_jax.models import adapters, huggingface
from dat_jax.report import card
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import load_target
from dat_jax.training import loop


def exact(config: ConfigDict) -> ConfigDict:
    """Returns the config with a target in full precision: factors that a quantized base was trained with belong on the original weights."""
    if config.target.dtype in huggingface.DTYPES:
        return config
    config = config.copy_and_resolve_references()
    config.target.dtype = config.target.compute_dtype
    return config


def run(inputs: Inputs, mesh) -> None:
    """Writes what is trained and not exported yet. Raises ValueError for a method whose training is not finished."""
    methods = [method.name for method in inputs.methods if method.trains]
    for run in (inputs.folder / method for method in methods):
        if not (run / "finished.json").exists():
            raise ValueError(f"{run}: the training of {run.name} is not finished; run --mode=train first")
    target = load_target(exact(inputs.config), mesh)
    for method in methods:
        folder, run = inputs.folder / "export" / method, inputs.folder / method
        if (folder / "README.md").exists():
            for written in (folder, folder.parent / f"{method}-adapter"):
                if (written / huggingface.MANIFEST).exists():
                    manifest.check(written / huggingface.MANIFEST, f"put it back as it was, or delete {written} to export again")
            logging.info("export %s, seed %d: done", method, inputs.seed)
            continue
        adapter = folder.parent / f"{method}-adapter"
        for half_written in (folder, adapter) if jax.process_index() == 0 else ():
            half_written.rmtree(missing_ok=True)
        multihost_utils.sync_global_devices(f"export {method}")  # nobody writes before all is removed
        params, lora = loop.restore(target, run, mesh)
        models.save(loop.merged(target, params, lora), str(folder))
        text = card.card(method, inputs.seed, inputs.config, inputs.folder.parent, manifest.read(run / loop.FINISHED)["collapsed"])
        # Factors that were trained on top of a checkpoint are no adapter of the base model: the merged folder alone is right.
        factors = None if inputs.config.target.checkpoint else lora
        if factors is not None:
            adapters.save_adapter(factors, target.config, str(adapter), inputs.config.target.model, inputs.config.target.dtype)
        if jax.process_index() == 0:  # last: its presence says that the folder is complete
            for written in (adapter, folder) if factors is not None else (folder,):
                files.write_text(written / "README.md", text)
        logging.info("export %s, seed %d: %s", method, inputs.seed, folder)
