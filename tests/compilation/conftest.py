"""The TPU's compiler reads XLA_FLAGS too, and ends the process at a flag of the CPU's that it does not know."""

import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def flags_that_a_tpu_knows():
    """Leaves the CPU, which has read them, its flags, and takes what is the CPU's alone out of the environment."""
    jax.devices()
    before = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in before.split() if not flag.startswith("--xla_cpu_use_fusion_emitters"))
    yield
    os.environ["XLA_FLAGS"] = before
