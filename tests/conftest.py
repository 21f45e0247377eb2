"""Set up before jax starts: eight CPU devices, strict broadcasting, and the folders of reference data."""

import importlib.util
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes to compiling programs that run once. Without optimization and fusion emitters that takes a seventh as long: 1.0 s of
# processor time in place of 7.3 s for a small train step, and 11.8 s with optimization.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {FAST}"

import jax
import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small program anew. The cache lives as long as the session, and its workers share it.
if "DAT_JAX_TEST_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="dat_jax_compilations_")
    os.environ["DAT_JAX_TEST_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["DAT_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
MAPS = 30_000  # memory maps of a process; Linux allows 65,530


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the compiled programs after a module that leaves many: they run into the system's limit on memory maps, and XLA aborts."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
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


def pytest_itemcollected(item):
    """Marks what needs the shared folder, so that the end of a run can tell what became of it."""
    if "shared" in getattr(item, "fixturenames", ()):
        item.user_properties.append(("needs", "shared"))


def pytest_terminal_summary(terminalreporter):
    """One line: how many of the tests that need the shared folder ran."""

    def needing(*outcomes):
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, ())]
        return sum(("needs", "shared") in map(tuple, getattr(report, "user_properties", ())) for report in reports)

    ran, skipped = needing("passed", "failed", "error"), needing("skipped")
    if ran or skipped:
        terminalreporter.write_line(f"tests that need the shared reference data: {ran} ran, {skipped} skipped")


@pytest.fixture(scope="session")
def tiny_job():
    """The module stations/tiny_job.py: what a user brings at a size of seconds, and as a config file what is done with it."""
    path = pathlib.Path(__file__).parent / "stations" / "tiny_job.py"
    spec = importlib.util.spec_from_file_location("tiny_job", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_model() -> Model:
    """A random causal model over a word-level tokenizer with a chat template."""
    words = [*"abcdefghijklmnopqrstuvwxyz", "paint", "wash", "the", "wood", "door", "with", "brush", "how", "did", "people"]
    specials = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    inner = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(specials + words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(specials)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
    )
    config = ModelConfig(vocab_size=len(specials + words), width=32, layers=2, heads=2, remat=False)
    return Model(weights.initialize(jax.random.key(4), config), config, tokenizer, "small")
