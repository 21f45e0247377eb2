"""What compiling told: does it fit, what moves, and the least time a run can take (roofline), as a page of text and as JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dat_jax.compilation.chips import GIB, Chip
from dat_jax.compilation.costs import Cost
from dat_jax.compilation.memory import Memory
from dat_jax.compilation.programs import Program


@dataclasses.dataclass(frozen=True)
class Account:
    """One compiled program on one slice. Seconds are lower bounds from public peaks; nothing was run."""

    name: str
    about: str
    devices: int
    chip: Chip
    memory: Memory
    cost: Cost
    needed_flops: dict[str, float]  # by formula, all devices
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether arguments, outputs and temporaries fit into the HBM that a program may use."""
        return self.memory.total <= self.chip.hbm_bytes

    @property
    def bounds(self) -> dict[str, float]:
        """Least seconds for the products, for HBM traffic and for the chips' links, were each the only one."""
        received = sum(total["bytes"] for total in self.cost.by_kind().values())
        return {
            "flops": sum(self.cost.flops.values()) / self.chip.flops_per_second,
            "hbm": self.cost.hbm_bytes / self.chip.hbm_bytes_per_second,
            "links": received / self.chip.ici_bytes_per_second,
        }

    @property
    def seconds(self) -> float:
        """The roofline: products, HBM and links overlap perfectly."""
        return max(self.bounds.values())

    @property
    def utilization(self) -> float:
        """Upper bound on model-FLOPs utilization: needed FLOPs over what the slice could do in `seconds`."""
        return sum(self.needed_flops.values()) / (self.seconds * self.devices * self.chip.flops_per_second)

    @property
    def recomputation(self) -> float:
        """FLOPs in the program over FLOPs needed; not a number where a method does not count what it needs."""
        needed = sum(self.needed_flops.values())
        return sum(self.cost.flops.values()) * self.devices / needed if needed else math.nan


def account(program: Program, devices: int, chip: Chip, memory: Memory, cost: Cost, compile_seconds: float) -> Account:
    """The account of a compiled program; what lies in memory beside it counts with its arguments."""
    memory = dataclasses.replace(memory, arguments=memory.arguments + program.beside, total=memory.total + program.beside)
    about = program.about + (f", {program.beside / GIB:.1f} GiB of other weights beside" if program.beside else "")
    return Account(program.name, about, devices, chip, memory, cost, program.flops, compile_seconds)


def record(a: Account) -> dict[str, Any]:
    """The account as JSON: bytes, FLOPs and seconds; per device unless said otherwise."""
    return {
        "program": a.name,
        "about": a.about,
        "devices": a.devices,
        "fits": a.fits,
        "hbm": {"usable": a.chip.hbm_bytes, "arguments": a.memory.arguments, "temporaries": a.memory.temporaries}
        | {"outputs": a.memory.outputs, "peak": a.memory.total},
        "buffers": [dataclasses.asdict(buffer) for buffer in a.memory.buffers],
        "collectives": a.cost.by_kind(),
        "largest_collectives": [
            {"kind": c.kind, "times": c.times, "bytes": c.bytes, "group": c.group, "shape": c.shape, "op_name": c.op_name}
            for c in sorted(a.cost.collectives.values(), key=lambda c: -c.bytes * c.times)[:12]
        ],
        "flops": {
            "needed_all_devices": a.needed_flops,
            "compiled_all_devices": {scope: flops * a.devices for scope, flops in a.cost.flops.items()},
            "recomputation": a.recomputation,
        },
        "hbm_traffic": a.cost.hbm_bytes,
        "roofline": {"seconds": a.seconds, "bounds": a.bounds, "utilization": a.utilization},
        "loops_of_unknown_length": a.cost.unknown_loops,
        "compile_seconds": a.compile_seconds,
    }


def text(a: Account) -> str:
    """The account as a few lines to read."""
    m, limit = a.memory, max(a.bounds, key=lambda name: a.bounds[name])
    lines = [
        f"{a.name}: {a.about}",
        f"  {'fits' if a.fits else 'DOES NOT FIT'}: {m.total / GIB:.2f} of {a.chip.hbm_bytes / GIB:.2f} GiB per chip "
        f"(arguments {m.arguments / GIB:.2f}, temporaries {m.temporaries / GIB:.2f}, outputs {m.outputs / GIB:.2f})",
        "  largest buffers at the peak:",
        *(f"    {b.bytes / GIB:7.3f} GiB  {b.shape:32s} {b.name}  {b.op_name}" for b in m.buffers[: 6 if a.fits else 12]),
        "  received over the links per run:",
        *(f"    {total['bytes'] / 1e9:9.2f} GB  in {total['count']:.0f} x {kind}" for kind, total in sorted(a.cost.by_kind().items())),
        f"  matrix products: {sum(a.cost.flops.values()) * a.devices:.3e} FLOPs compiled = {a.recomputation:.2f} x the "
        f"{sum(a.needed_flops.values()):.3e} needed",
        f"  roofline: at least {a.seconds:.3f} s, bound by {limit} ({', '.join(f'{k} {v:.3f} s' for k, v in a.bounds.items())}); "
        f"utilization at most {100 * a.utilization:.0f} %",
        f"  compiled in {a.compile_seconds:.0f} s",
    ]
    lines += [f"  a loop of unknown length was counted once: {loop}" for loop in a.cost.unknown_loops]
    return "\n".join(lines)


def row(model: str, topology: str, mesh: str, attention: str, record: dict[str, Any]) -> str:
    """A row of the table in docs/tpu.md from a JSON record."""
    hbm, roofline = record["hbm"], record["roofline"]
    received = sum(total["bytes"] for total in record["collectives"].values())
    return (
        f"| {model} | {record['program']}: {record['about']} | {topology} | {mesh} | {attention} | "
        f"{hbm['peak'] / GIB:.1f} of {hbm['usable'] / GIB:.1f} GiB | "
        f"{received / 1e9:.0f} GB | {record['flops']['recomputation']:.2f} | {roofline['seconds']:.2f} s | "
        f"{100 * roofline['utilization']:.0f} % |"
    )
