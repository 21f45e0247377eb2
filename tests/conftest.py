"""Set up before jax starts: eight CPU devices, strict broadcasting, and the folders of reference data."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small program anew; the cache lives as long as the session.
_CACHE = tempfile.TemporaryDirectory(prefix="dat_jax_compilations_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees a module's compiled programs: hundreds in one process run into the system's limit on memory maps, and XLA aborts."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The recordings of the reference code; golden/README.md says what made each."""
    return pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with the public behavior files and SmolLM2's recordings; tests that need it skip where it is not whole."""
    folder = pathlib.Path(os.environ.get("DAT_JAX_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
    missing = [name for name in ("data/harmbench", "data/xstest", "golden/smollm2") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder} (set DAT_JAX_SHARED)")
    return folder
