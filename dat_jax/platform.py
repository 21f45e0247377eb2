"""Which kind of device jax looks for, decided before jax is imported."""

import glob
import importlib.util
import os


def environment() -> dict[str, str]:
    """Returns JAX_PLATFORMS to be set where libtpu is installed and no TPU is there: the GPU if one can be used, else the CPU.

    libtpu also compiles for TPUs that are not there, so it is installed on machines without one; jax then would look for the chip, wait
    and complain. Where the user has set JAX_PLATFORMS, or libtpu is not installed, jax decides.
    """
    if "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu") or has_tpu():
        return {}
    return {"JAX_PLATFORMS": "cuda,cpu" if has_gpu() else "cpu"}


def has_tpu() -> bool:
    """Whether a TPU's device files are there."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def has_gpu() -> bool:
    """Whether an NVIDIA GPU's device files are there, and jax's plugin for it is installed (the extra `cuda`)."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return bool(glob.glob("/dev/nvidia[0-9]*")) and any(importlib.util.find_spec(plugin) for plugin in plugins)
