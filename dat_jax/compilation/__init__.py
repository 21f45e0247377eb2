"""Ahead-of-time compilation for TPUs and GPUs that are not there: does the run fit, what does it communicate, how fast could it be."""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from dat_jax import sharding
from dat_jax.compilation import chips, costs, hlo, memory, programs, report, whole_run
from dat_jax.compilation.programs import Program
from dat_jax.compilation.report import Account
from dat_jax.config import check_training
from dat_jax.data import files
from dat_jax.stations.subjects import check_devices, check_dtype


class CompilerError(ValueError):
    """A program that the compiler fails at: another version, kernel or slice may compile it."""


def run(config: ConfigDict, workdir: str | None = None, only: tuple[str, ...] = ()) -> int:
    """Compiles the run's programs for config.topology, prints an account of each and of the whole run, and writes compile.json.

    only: names of programs; (): all. Returns 0, or 1 when a program does not fit into a chip's HBM: its largest buffers are named.
    Raises ValueError for a topology, mesh or model that cannot be, for a kernel that the chip does not have, and for a setting of a method
    that the model cannot have.
    """
    chip = chips.chip(config.topology)
    check_devices(config, "gpu" if chip.gpu else "tpu", bool(config.sampler.model))
    check_training(config, programs.architecture(config.target))
    for group in ("target", "sampler") if config.sampler.model else ("target",):
        check_dtype(group, programs.architecture(config[group]), config[group].dtype, repr(config[group].model))
    mesh = sharding.make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.dcn_data, chips.devices(config.topology, config.mesh.dcn_data)
    )
    shape = "x".join(str(size) for size in mesh.shape.values())
    print(f"{config.target.model} on {config.topology}, mesh data x fsdp x tensor = {shape}")
    runs, accounts = whole_run.parts(config), []  # first: it reads the behaviors, and can fail
    with jax.set_mesh(mesh):
        for program in programs.of_run(config, mesh):
            if not only or program.name in only:
                accounts.append(compiled(program, mesh.size, chip))
                print(report.text(accounts[-1]), flush=True)
    about: dict[str, Any] = {"target": config.target.model, "sampler": config.sampler.model, "topology": config.topology, "mesh": shape}
    about["attention"] = {"target": config.target.attention, "sampler": config.sampler.attention}
    about["dtype"] = {"target": config.target.dtype, "sampler": config.sampler.dtype}
    besides = whole_run.uncounted(config)
    bound = whole_run.record(*runs, accounts, besides)
    fast = whole_run.record(*whole_run.parts(faster), accounts, besides) if bound and (faster := whole_run.faster(config)) else {}
    sizes = dict(mesh.shape) | {"data": mesh.shape["data"] // config.mesh.dcn_data}
    splash = [key for key in ("target", "sampler") if config[key].attention == "splash"]
    advice = whole_run.advice(config.topology, sizes, accounts, programs.savings(config), splash)
    said = [whole_run.text(bound, chip) if bound else "", whole_run.fast_text(fast, chip) if fast else "", advice]
    print("\n".join(line for line in said if line), flush=True)
    about |= {"whole_run": bound, "whole_run_fast": fast}
    if workdir:
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        records = [report.record(a) for a in accounts]
        (epath.Path(workdir) / "compile.json").write_text(json.dumps(about | {"programs": records}, indent=1) + "\n")
    failed = [a for a in accounts if not a.fits]
    for a in failed:
        names = ", ".join(f"{b.name} {b.shape} {b.bytes / chips.GIB:.2f} GiB" for b in a.memory.buffers[:5])
        print(f"dat_jax: {a.name} does not fit into {config.topology}; largest buffers: {names}", file=sys.stderr)
    return 1 if failed else 0


def compiled(program: Program, devices: int, chip: chips.Chip) -> Account:
    """Compiles one program and reads its costs; a program that needs too much HBM is read from what the compiler left behind."""
    with tempfile.TemporaryDirectory() as folder:
        dump: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, **chip.compiler_options}
        started = time.monotonic()
        try:
            program.lower().compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                more = "; a model's attention = xla may compile where splash does not"
                raise CompilerError(f"{program.name}: the compiler fails: {files.one_line(error)[:160]}{more}") from error
        seconds = time.monotonic() - started
        module = hlo.parse(memory.dumped(pathlib.Path(folder), "after_optimizations.txt"))
        account = memory.read(pathlib.Path(folder), module)
    return report.account(program, devices, chip, account, costs.cost(module), seconds)
