"""Reads the compiler's own account of memory, which exists also for programs that do not fit."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from dat_jax.compilation.hlo import Module


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that is alive when most memory is in use."""

    name: str
    bytes: float
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM per device; arguments and outputs that share memory count once, as arguments."""

    arguments: float
    temporaries: float
    outputs: float
    total: float
    buffers: tuple[Buffer, ...]  # at the peak, largest first


def dumped(folder: pathlib.Path, suffix: str) -> str:
    """The text of the newest dump file with this ending. Raises ValueError where the compiler left none."""
    files = sorted(folder.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(f"the compiler left no {suffix} in {folder}")
    return files[-1].read_text()


def read(folder: pathlib.Path, module: Module, largest: int = 12) -> Memory:
    """The account of the program whose compilation was dumped into `folder`."""
    arguments, outputs, temporaries = allocations(dumped(folder, "after_optimizations-buffer-assignment.txt"))
    live = peak(dumped(folder, "after_optimizations-live-range.txt"))
    places = {i.name: i for computation in module.computations.values() for i in computation.instructions.values()}
    buffers = []
    for name, size in sorted(live.items(), key=lambda item: -item[1])[:largest]:
        instruction = places.get(name.split("{")[0])
        shape = ""
        if instruction is not None:
            leaf = max(instruction.shapes, key=lambda s: (s.bytes == size, s.bytes))
            shape = f"{leaf.dtype}[{','.join(map(str, leaf.dims))}]"
        buffers.append(Buffer(name, size, shape, instruction.op_name if instruction else ""))
    return Memory(arguments, temporaries, outputs, arguments + outputs + temporaries, tuple(buffers))


def allocations(text: str) -> tuple[float, float, float]:
    """Bytes of arguments, of outputs that alias no argument, and of temporaries in HBM, from a buffer assignment's text."""
    arguments = outputs = temporaries = 0.0
    for size, rest in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.MULTILINE):
        if "color" in rest and "color 0" not in rest:
            continue
        if "parameter" in rest:
            arguments += int(size)
        elif "maybe-live-out" in rest or rest.startswith("output"):
            outputs += int(size)
        elif "thread-local" not in rest:
            temporaries += int(size)
    return arguments, outputs, temporaries


def peak(text: str) -> dict[str, float]:
    """Name -> bytes of what is alive at the peak, from a live range's text."""
    section = re.search(r"Live ranges at \d+ \(peak\):\n((?:    .*\n)*)", text)
    if not section:
        return {}
    found: dict[str, float] = {}
    for name, size in re.findall(r"^\s+(\S+): (\d+) bytes", section[1], re.MULTILINE):
        found[name.removesuffix("{}")] = float(size)
    return found
