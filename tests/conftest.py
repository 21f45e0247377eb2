"""Set up before jax starts: eight CPU devices, strict broadcasting, and the folders of reference data."""

import collections
import http.server
import importlib.util
import json
import os
import pathlib
import socket
import tempfile
import threading
from http import HTTPStatus

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes to compiling programs that run once. Without optimization and fusion emitters that takes a seventh as long: 1.0 s of
# processor time in place of 7.3 s for a small train step, and 11.8 s with optimization.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    ]
)

# Many tests compile the same small program anew. The cache lives as long as the session. Its workers share it, and the processes that tests
# start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="dat_jax_compilations_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

jax.config.update("jax_numpy_rank_promotion", "raise")
MAPS = 8_000  # memory maps of a process, at about 4 GB of memory; Linux allows 65,530
# The files that take longest. They are handed out first, so that no core waits for one of them at the end.
LONGEST = (
    "test_notebook.py", "test_bucket.py", "test_quickstart.py", "test_multihost.py", "stations/test_multihost.py",
    "world/test_target_behavior.py", "test_kills.py", "test_sharded_steps.py", "stations/test_job.py", "stations/test_subjects.py",
    "compilation/test_programs.py", "compilation/test_quantized_step.py", "stations/test_signals.py", "test_main.py",
    "diffusion/test_adapt.py", "diffusion/test_example.py", "models/test_processes.py", "test_extending.py",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the compiled programs after a module that leaves many: they take memory, and XLA aborts at the limit on memory maps."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Sorts whole files: the longest first, then those of most tests."""
    here, count = pathlib.Path(__file__).parent, collections.Counter(item.path for item in items)
    assert all((here / name).exists() for name in LONGEST), "a file of LONGEST has another name now"
    rank = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), -count[item.path]))


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


@pytest.fixture
def server():
    """A chat endpoint that gives what stands in `script`, its last entry over and over; `seen` are the bodies and headers that came.

    An entry is (status, text, headers), or a function from a request's body to one; at first it always says Yes.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            found = self.server
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with found.lock:
                found.seen.append((self.path, body, dict(self.headers)))
                answer = found.script.pop(0) if len(found.script) > 1 else found.script[0]
            status, text, headers = answer(body) if callable(answer) else answer
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
            except OSError:
                return  # whoever asked has not waited

        def log_message(self, *arguments):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.script, found.seen, found.lock = [(200, json.dumps({"choices": [{"message": {"content": "Yes"}}]}), {})], [], threading.Lock()
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield found
        found.shutdown()


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


@pytest.fixture(scope="module")
def bucket():
    """The emulator's objects by name, {name: metadata}; the bucket is gs://bucket."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install gcp-storage-emulator")
    pytest.importorskip("gcsfs", reason="pip install gcsfs")
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        found = storage.objects.get(request.params["bucket_name"], {}).get(request.params["object_id"])
        if found:
            response["x-goog-generation"] = found["generation"]

    def conditional(upload):
        def wrapped(request, response, storage):
            wanted = request.query.get("ifGenerationMatch")
            found = storage.objects.get(request.params["bucket_name"], {}).get(request.query.get("name", [""])[0])
            if wanted and wanted[0] != (found["generation"] if found else "0"):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            upload(request, response, storage)

        return wrapped

    remove = objects.delete

    def conditional_delete(request, response, storage, *args, **kwargs):
        wanted = request.query.get("ifGenerationMatch")
        found = storage.objects.get(request.params["bucket_name"], {}).get(request.params["object_id"])
        if wanted and found and wanted[0] != found["generation"]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        remove(request, response, storage, *args, **kwargs)

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for _, handlers in emulator.HANDLERS:
            if handlers.get("DELETE") is remove:
                patch.setitem(handlers, "DELETE", conditional_delete)
        patch.setattr(objects, "download", with_generation)
        patch.setattr(objects, "_media_upload", conditional(objects._media_upload))
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):  # for gcsfs and TensorBoard's writer, and for Orbax
            patch.setenv(name, f"http://localhost:{port}")
        patch.setenv("NO_GCE_CHECK", "true")  # there is no server to ask who we are
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
        server.start()
        yield server._storage.objects.setdefault("bucket", {})
        server.stop()
