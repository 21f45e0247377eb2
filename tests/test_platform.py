"""Which devices jax is told to look for, on machines of every kind."""

import pytest

from dat_jax import platform, sharding

TPU, VFIO, GPU = "/dev/accel0", "/dev/vfio/0", "/dev/nvidia0"


@pytest.fixture
def machine(monkeypatch):
    """machine(device files, installed packages) -> what is set in the environment."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)

    def environment(files=(), packages=()):
        def found(pattern):
            begin = pattern.split("*")[0].split("[")[0]
            assert begin in ("/dev/accel", "/dev/vfio/", "/dev/nvidia")
            return [file for file in files if file.startswith(begin)]

        monkeypatch.setattr(platform.glob, "glob", found)
        monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: object() if name in packages else None)
        return platform.environment()

    return environment


@pytest.mark.parametrize(
    ("files", "packages", "expected"),
    [
        ((), ("libtpu",), "cpu"),  # a machine that compiles for TPUs and has none
        ((TPU,), ("libtpu",), None),
        ((VFIO,), ("libtpu",), None),
        ((GPU,), ("libtpu", "jax_cuda12_plugin"), "cuda,cpu"),
        ((GPU,), ("libtpu", "jax_cuda13_plugin"), "cuda,cpu"),
        ((GPU,), ("libtpu",), "cpu"),  # a GPU that jax cannot use
        ((), ("libtpu", "jax_cuda12_plugin"), "cpu"),
        ((TPU, GPU), ("libtpu", "jax_cuda12_plugin"), None),
        ((), (), None),  # without libtpu jax looks for no TPU
        ((GPU,), ("jax_cuda12_plugin",), None),
    ],
)
def test_the_device_that_is_there_is_looked_for(machine, files, packages, expected):
    assert machine(files, packages) == ({} if expected is None else {"JAX_PLATFORMS": expected})


def test_what_the_user_has_set_stays(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert machine((), ("libtpu",)) == {}
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert machine((GPU,), ("libtpu", "jax_cuda12_plugin")) == {}


@pytest.mark.parametrize(("visible", "expected"), [("", "cpu"), ("-1", "cpu"), ("0", "cuda,cpu")])
def test_a_gpu_that_is_hidden_is_not_looked_for(machine, monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine((GPU,), ("libtpu", "jax_cuda12_plugin")) == {"JAX_PLATFORMS": expected}


def test_a_gpu_that_cannot_be_used_is_an_error_and_a_tpu_may_be_tried_again(monkeypatch):
    """What jax says of a driver that is broken, and of a TPU that another process holds."""

    def broken(platform):
        def process_count():
            raise RuntimeError(f"Unable to initialize backend '{platform}': Backend '{platform}' is not in the list of known backends")

        monkeypatch.setattr(sharding.jax, "process_count", process_count)

    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    broken("cuda")
    with pytest.raises(ValueError, match=r"the GPU cannot be used; .* set JAX_PLATFORMS=cpu to do without it: Unable to initialize"):
        sharding.initialize(1)
    broken("tpu")
    with pytest.raises(RuntimeError, match="Unable to initialize backend 'tpu'"):
        sharding.initialize(1)
