"""Which kind of device jax looks for, decided before jax is imported."""

import glob
import importlib.util
import os


def environment() -> dict[str, str]:
    """Returns JAX_PLATFORMS to be set where libtpu is installed and no TPU is there: the GPU if one can be used, else the CPU.

    libtpu also compiles for TPUs that are not there, so it is installed on machines without one; jax then would look for the chip, wait
    and complain. A GPU is named, so that one whose driver is broken ends the run (see `sharding.initialize`) and is not passed over. Where
    the user has set JAX_PLATFORMS, or libtpu is not installed, jax decides.
    """
    if "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu") or has_tpu():
        return {}
    return {"JAX_PLATFORMS": "cuda,cpu" if has_gpu() and has_plugin() else "cpu"}


def has_tpu() -> bool:
    """Whether a TPU's device files are there."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def has_gpu() -> bool:
    """Whether an NVIDIA GPU's device files are there, and CUDA_VISIBLE_DEVICES does not hide them all."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not hidden and (bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg"))  # dxg: Windows' subsystem for Linux


def has_plugin() -> bool:
    """Whether jax's plugin for NVIDIA GPUs is installed (the extra `cuda`)."""
    return any(importlib.util.find_spec(plugin) for plugin in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
