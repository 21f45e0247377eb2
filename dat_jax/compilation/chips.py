"""TPU chips and topologies: what the public data sheets promise, and the devices of a slice that nobody has to own."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per jax device. hbm_bytes: what libtpu lets a program use (found by compiling); rates: public peaks, bytes and FLOPs per second.

    ici_bytes_per_second is the sum over a chip's links as published, so bounds from it are optimistic.
    """

    hbm_bytes: float
    hbm_bytes_per_second: float
    flops_per_second: float  # bfloat16
    ici_bytes_per_second: float


GIB = 2**30
# Sources: docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x. Interconnect: 1600, 4800, 3584 and 9600 Gbit/s per chip. A tpu7x chip is
# two devices, each with half of its peaks.
CHIPS = {
    "v5e": Chip(15.75 * GIB, 0.82e12, 197e12, 200e9),
    "v5p": Chip(95.74 * GIB, 2.76e12, 459e12, 600e9),
    "v6e": Chip(31.25 * GIB, 1.64e12, 918e12, 448e9),
    "tpu7x": Chip(94.75 * GIB, 3.7e12, 1153e12, 600e9),
}


def chip(topology: str) -> Chip:
    """The chip of a topology name such as "v5e:4x4". Raises ValueError for another form or an unknown generation."""
    match = re.fullmatch(r"(\w+):(\d+x\d+(?:x\d+)?)", topology)
    if not match or match[1] not in CHIPS:
        raise ValueError(f"config.topology is {topology!r}; allowed: {', '.join(CHIPS)}, a colon and the chips' grid, as in 'v5e:4x4'")
    return CHIPS[match[1]]


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of `slices` slices of a topology, known to the compiler alone.

    Raises ValueError when libtpu is not installed or does not know the topology.
    """
    chip(topology)
    # The compiler is used without a TPU: it must neither look for one in the network nor claim the machine for itself.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # of this host, not of the topology: keeps libtpu from complaining
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    if re.fullmatch(r"\w+:1x1", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)  # type: ignore[assignment]
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except Exception as error:
        hint = "the TPU compiler does not take it, or is not installed (pip install 'dat_jax[tpu]')"
        raise ValueError(f"config.topology is {topology!r}: {hint}: {error}") from error
