"""The stations of a run, one file each: sample, train, evaluate, judge, export, report; each goes on where it was, or says it is done.

A station reads what the stations before it left in the work directory (`workdir.py` lists the files) and nothing that comes after it.
A mode is a station, several with commas between, `all` of them but export, or by itself `compile` or `serve`.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dat_jax import sharding
from dat_jax.data import files
from dat_jax.stations import evaluate, export, given, judge, lock, report, rewriter, sample, serve, train
from dat_jax.stations import workdir as workdirs
from dat_jax.stations.inputs import Inputs, check_files, read_inputs
from dat_jax.stations.subjects import check_devices, check_sources

# Of a seed, in the order in which they run; the report is of all seeds and comes last.
STATIONS: dict[str, Callable] = {
    "sample": sample.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "judge": judge.run,
    "export": export.run,
}
ALL = ("sample", "train", "evaluate", "judge", "report")
ALONE = ("serve", "compile")
MODES = ("all", *STATIONS, "report", *ALONE)


def parse(mode: str) -> tuple[str, ...]:
    """Returns the stations of a mode, or one of ALONE. Raises ValueError for anything else."""
    names = ALL if mode == "all" else tuple(name.strip() for name in mode.split(","))
    if names not in [(name,) for name in ALONE] and not set(names) <= {*STATIONS, "report"}:
        raise ValueError(f"--mode={mode}; allowed: {', '.join(MODES)}, or stations with commas between, as in evaluate,judge,report")
    return names


def run(mode: str, config: ConfigDict, workdir: str) -> int:
    """Runs a mode for every seed and returns the exit status. Raises ValueError for whatever the user can mend."""
    names = parse(mode)
    if names == ("compile",):
        from dat_jax import compilation  # here: it starts the TPU's compiler

        return compilation.run(config, workdir)
    started, folder = time.monotonic(), epath.Path(files.absolute(workdir))  # absolute now: a run may change its folder
    if names == ("serve",):  # writes nothing but compiled programs, so the folder may be another call's
        serve.run(config, folder)
        return 0
    if names == ("report",):  # needs no device, no model and none of the files that the run read
        report.run(folder, config, lock.owner_of(folder))
        return 0
    if config.world.enabled and (files.is_remote(workdir) or config.mesh.processes > 1):
        raise ValueError(
            f"config.world.enabled is True with --workdir={workdir} and config.mesh.processes = {config.mesh.processes}; allowed: "
            "a local workdir and one process, or the folder of a world that was built so in the keys of config.target, sampler and data"
        )
    if "evaluate" in names and not config.data.eval_behaviors and not config.world.enabled:
        raise ValueError("config.data.eval_behaviors is empty; allowed: a behaviors CSV to attack the models with")
    check_files(config)
    check_sources(config)
    if "judge" in names:  # now, not after hours with the models
        judge.check(config.evaluation.judges, config)
    judge.check_memory(names, config)
    sharding.initialize(config.mesh.processes, config.mesh.timeout)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.dcn_data)
    check_devices(config, mesh.devices.flat[0].platform)
    with lock.held(folder), workdirs.returned(folder), jax.set_mesh(mesh):
        contents = workdirs.check_claim(folder, config)
        workdirs.check_agreement(config)
        workdirs.keep_programs(folder)
        with report.written_meanwhile(folder, config.report.every if jax.process_index() == 0 else 0):
            for seed in config.seeds:
                inputs = read_inputs(config, folder / f"seed_{seed}", seed)
                if "evaluate" in names:
                    given.check(inputs)
                    rewriter.check(inputs)
                # Now: a call that ends at a wrong path leaves nothing that the mended call would trip over.
                workdirs.claim(folder, config, contents)
                for name, read in turns(names, inputs):
                    STATIONS[name](read, mesh)
                    multihost_utils.sync_global_devices(f"{name} {seed}")  # the next one reads on all processes what process 0 wrote
        if "report" in names and jax.process_index() == 0:
            report.run(folder, config)
    logging.info("%s: done in %.0f s%s", mode, time.monotonic() - started, _following(names))
    return 0


def turns(names: tuple[str, ...], inputs: Inputs) -> list[tuple[str, Inputs]]:
    """A seed's stations in order, with what each reads.

    Replay sends what broke another model: where models are attacked and judged, they first are without it.
    """
    found = [(name, inputs) for name in STATIONS if name in names]
    attacks = tuple(inputs.config.evaluation.attacks)
    if "replay" not in attacks or not {"evaluate", "judge"} <= set(names):
        return found
    config = inputs.config.copy_and_resolve_references()  # a plain copy would share the groups
    config.evaluation.attacks = tuple(name for name in attacks if name != "replay")
    first, at = dataclasses.replace(inputs, config=config), [name for name, _ in found].index("evaluate")
    return [*found[:at], ("evaluate", first), ("judge", first), *found[at:]]


def _following(names: tuple[str, ...]) -> str:
    """What is left to do for whoever wants to read the outcome; "" where that is done, or nothing was answered or judged."""
    if "report" in names or not {"evaluate", "judge"} & set(names):
        return ""
    return f"; next: --mode={'report' if 'judge' in names else 'judge,report'}"
