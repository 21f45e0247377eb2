"""TPU and GPU chips: what the public data sheets promise, and the devices of a slice or host that nobody has to own."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per jax device. hbm_bytes: what a program may use (of a TPU found by compiling); rates: public peaks, bytes and FLOPs per second.

    ici_bytes_per_second is the sum over a chip's links as published, so bounds from it are optimistic. slices: grids of chips that can be
    had, smallest first, as far as 16 chips. dollars_per_hour: list price of a chip; 0.0: none. devices: jax devices of a chip.
    """

    hbm_bytes: float
    hbm_bytes_per_second: float
    flops_per_second: float  # bfloat16
    ici_bytes_per_second: float
    slices: tuple[str, ...]
    dollars_per_hour: float = 0.0
    devices: int = 1
    gpu: str = ""  # of a GPU what its compiler must know of it (xla.GpuTargetConfig as text)

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """How to compile without the device: kernels of a GPU cannot be tried, and untried ones of Triton may not compile at all."""
        return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if self.gpu else {}


GIB = 2**30
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: {threads} core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {optin} cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA" device_description_str: "{name}"
runtime_version {{ major: 12 minor: 9 }} dnn_version_info {{ major: 9 minor: 10 }}
"""
# As jax reports it: jax.lib.xla_client.get_topology_for_devices(jax.devices()).target_config.
H100 = GPU.format(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, cores=132, fpus=128, threads=2048, shared=233472, optin=232448, cache=52428800,
    bandwidth=3352320000000, clock=1.98, memory=84929347584,
)  # fmt: skip
# As XLA's own description of it (target_config/specs/a100_sxm_40).
A100_40 = GPU.format(
    name="NVIDIA A100-SXM4-40GB", major=8, minor=0, cores=108, fpus=64, threads=2048, shared=167936, optin=166912, cache=41943040,
    bandwidth=1555200000000, clock=1.41, memory=42331013120,
)  # fmt: skip
# By NVIDIA's data sheet and CUDA's table of compute capability 8.9; nobody asked such a card.
RTX_4090 = GPU.format(
    name="NVIDIA GeForce RTX 4090", major=8, minor=9, cores=128, fpus=128, threads=1536, shared=102400, optin=101376, cache=75497472,
    bandwidth=1008096000000, clock=2.52, memory=25386352640,
)  # fmt: skip
# Sources: docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x. Interconnect: 1600, 4800, 3584 and 9600 Gbit/s per chip. A tpu7x chip is
# two devices, each with half of its peaks. GPUs: NVIDIA's data sheets, dense products summed in float32, NVLink or PCIe in one direction;
# memory with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9: jax takes 75 % unless told otherwise.
# Prices: cloud.google.com/tpu/pricing, on demand, in the cheapest region of the United States; spot and commitments cost less. GPUs cost
# several times as much in one cloud as in another, so they have none here. tpu7x is to be had through GKE alone.
FLAT, DEEP, HOST = ("1x1", "2x2", "2x4", "4x4"), ("2x2x1", "2x2x2", "2x2x4"), ("1x1", "1x2", "1x4", "1x8")
CHIPS = {
    "v5e": Chip(15.75 * GIB, 0.82e12, 197e12, 200e9, FLAT, 1.2),
    "v5p": Chip(95.74 * GIB, 2.76e12, 459e12, 600e9, DEEP, 4.2),
    "v6e": Chip(31.25 * GIB, 1.64e12, 918e12, 448e9, FLAT, 2.7),
    "tpu7x": Chip(94.75 * GIB, 3.7e12, 1153e12, 600e9, DEEP, 12.0, devices=2),
    "h100": Chip(71.2 * GIB, 3.35e12, 989e12, 450e9, HOST, gpu=H100),
    "a100_40": Chip(35.5 * GIB, 1.56e12, 312e12, 300e9, HOST, gpu=A100_40),
    "rtx4090": Chip(21.3 * GIB, 1.01e12, 165e12, 32e9, HOST, gpu=RTX_4090),
}


def chip(topology: str) -> Chip:
    """The chip of a topology name such as "v5e:4x4"; GPUs are hosts x GPUs of a host, as in "h100:1x1".

    Raises ValueError for another form or an unknown generation.
    """
    match = re.fullmatch(r"(\w+):(\d+x\d+(?:x\d+)?)", topology)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"config.topology is {topology!r}; allowed: {', '.join(CHIPS)}, a colon and the chips' grid, as in 'v5e:4x4' or 'h100:1x1'"
        )
    return CHIPS[match[1]]


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of `slices` slices of a topology, known to the compiler alone.

    Raises ValueError when the compiler is not installed (libtpu, or jax's plugin for CUDA) or does not know the topology.
    """
    if gpu := chip(topology).gpu:
        return _described(topology, "cuda", {"target_config": gpu, "topology": f"{slices}x{topology.split(':')[1]}"})
    # The compiler is used without a TPU: it must neither look for one in the network nor claim the machine for itself.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # of this host, not of the topology: keeps libtpu from complaining
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if re.fullmatch(r"\w+:1x1", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)
    return _described(topology, "tpu", options)


def _described(topology: str, platform: str, options: dict[str, Any]) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, platform, **options).devices)
    except Exception as error:
        hint = f"its compiler does not take it, or is not installed (pip install 'dat_jax[{platform}]')"
        raise ValueError(f"config.topology is {topology!r}: {hint}: {error}") from error
