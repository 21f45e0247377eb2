"""The stations of a run, one file per mode: sample, train, evaluate, judge, report, export; each goes on where it was, or says it is done.

A station reads what the stations before it left in the work directory (`workdir.py` lists the files) and nothing that comes after it.
"""

import logging
import time
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from dat_jax import sharding
from dat_jax.data import files
from dat_jax.stations import evaluate, export, judge, report, sample, train
from dat_jax.stations import workdir as workdirs
from dat_jax.stations.inputs import check_files, read_inputs

# Of a seed, in the order of `all`.
STATIONS: dict[str, Callable] = {"sample": sample.run, "train": train.run, "evaluate": evaluate.run, "judge": judge.run}
MODES = ("all", *STATIONS, "report", "export", "compile")


def run(mode: str, config: ConfigDict, workdir: str) -> int:
    """Runs one mode for every seed and returns the exit status. Raises ValueError for whatever the user can mend."""
    if mode == "compile":
        from dat_jax import compilation  # here: it starts the TPU's compiler

        return compilation.run(config, workdir)
    started, folder = time.monotonic(), epath.Path(files.absolute(workdir))  # absolute now: a run may change its folder
    if mode == "report":
        report.run(folder)
        return 0
    if config.world.enabled and (files.is_remote(workdir) or config.mesh.processes > 1):
        raise ValueError(
            f"config.world.enabled is True with --workdir={workdir} and config.mesh.processes = {config.mesh.processes}; allowed: "
            "a local workdir and one process, or the folder of a world that was built so in the keys of config.target, sampler and data"
        )
    check_files(config)
    sharding.initialize(config.mesh.processes, config.mesh.timeout)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.dcn_data)
    workdirs.check_claim(folder, config)
    workdirs.check_agreement(config)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
    with jax.set_mesh(mesh):
        for seed in config.seeds:
            inputs = read_inputs(config, folder / f"seed_{seed}", seed)
            workdirs.claim(folder, config)  # now: a call that ends at a wrong path leaves nothing that the mended call would trip over
            for name, station in STATIONS.items():
                if mode in ("all", name):
                    station(inputs, mesh)
            if mode == "export":
                export.run(inputs, mesh)
        if mode == "all" and jax.process_index() == 0:
            report.run(folder)
    logging.info("%s: done in %.0f s", mode, time.monotonic() - started)
    return 0
