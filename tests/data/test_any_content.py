"""Whatever stands in a file that is read, the end is what it says or one ValueError, and soon."""

import csv
import io
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dat_jax.data import answers, manifest
from dat_jax.data.behaviors import Behavior, load_behaviors
from dat_jax.data.cases import read_cases
from dat_jax.data.chats import load_chats
from dat_jax.data.infilled import read_infilled
from dat_jax.data.prompts import read_records
from dat_jax.data.rewrites import read_rewrites
from dat_jax.data.templates import read_templates
from dat_jax.data.utility import read_utility_prompts
from dat_jax.models import adapters, families, huggingface, tensors

BEHAVIORS = [Behavior("a", "Paint it", ("t",), ("n",))]
TEXT = st.text(max_size=12) | st.sampled_from(["", " ", "a", "Paint it", "{prompt}", "\0", "\ud800", "past", "safe", "user", "assistant"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
KEYS = (
    "id", "prompt", "response", "rewrite", "held_out", "messages", "role", "content", "name", "template", "value", "form", "runs",
    "original_prompt", "steps", "model_input", "model_completions", "scores", "p_harmful", "test_case", "generation", "label", "a",
    "behavior_id", "seed", "sampler", "settings", "log_likelihood", "tokens", "compliance", "selected", "consistency", "done", "asked",
    "behavior", "answer", "score", "manifest", "format", "files", "checksum", "weight_map",
)  # fmt: skip
JSON = st.recursive(SCALAR, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inside, max_size=5))
COLUMNS = ("Behavior", "BehaviorID", "ContextString", "goal", "target", "Goal", "Target", "forbidden_prompt", "category", "id", "prompt",
           "label", "type", "original_prompt", "inpainted_prompt", "Safe_Response")  # fmt: skip


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


def as_csv(rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return encoded(text.getvalue())


def objects(*keys):
    """JSON lines whose objects have these keys, most of them, with anything in them."""
    lines = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(keys, JSON)) | JSON, max_size=4)
    return lines.map(lambda rows: encoded("\n".join(map(json.dumps, rows))))


def table(*columns):
    """A CSV of these columns, or of others."""
    head = st.just(list(columns)) | st.lists(st.sampled_from(COLUMNS), max_size=5)
    row = st.lists(TEXT, min_size=len(columns), max_size=len(columns)) | st.lists(TEXT, max_size=5)
    return st.tuples(head, st.lists(row, max_size=4)).map(lambda parts: as_csv([parts[0], *parts[1]]))


ANY = st.binary(max_size=60) | st.text(max_size=60).map(encoded) | JSON.map(lambda value: encoded(json.dumps(value)))
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": TEXT | JSON})
CHATS = st.lists(st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=4)}), max_size=3).map(
    lambda rows: encoded("\n".join(map(json.dumps, rows)))
)
STEP = st.fixed_dictionaries({}, optional=dict.fromkeys(("model_input", "model_completions", "scores"), JSON))
RUN = st.fixed_dictionaries({"original_prompt": st.lists(MESSAGE, max_size=3) | JSON, "steps": st.lists(STEP, max_size=3)})
RUNS = st.fixed_dictionaries({"runs": st.lists(RUN, max_size=3)})
CASES = (RUNS | st.dictionaries(st.just("a") | TEXT, st.lists(JSON, max_size=3), max_size=3)).map(lambda value: encoded(json.dumps(value)))
TARGETS = st.dictionaries(st.just("a"), JSON).map(lambda value: encoded(json.dumps(value)))
RECORD = objects("behavior_id", "prompt", "response", "seed", "sampler", "settings", "log_likelihood", "tokens", "compliance", "selected",
                 "consistency")  # fmt: skip
LINES = objects("behavior", "id", "prompt", "response", "answer", "label", "score")

FIELDS = {
    "model_type": "llada", "d_model": 4, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "mlp_hidden_size": 4, "vocab_size": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "mask_token_id": 7, "weight_tying": False, "max_sequence_length": 64, "rope_scaling": None,
    "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 4, "head_dim": 2,
    "hidden_act": "silu", "rope_parameters": {"rope_theta": 1e4}, "sliding_window": None, "layer_types": None, "tie_word_embeddings": False,
    "max_position_embeddings": 64, "quantization_config": None, "query_pre_attn_scalar": 4, "hidden_activation": "gelu",
}  # fmt: skip
TYPES = st.sampled_from(["llada", "illada", "Dream", "llada", "illada", "Dream", "llama", "phi3", "gemma3"])  # transformers' take longer
CONFIG = st.tuples(TYPES, st.dictionaries(st.sampled_from(sorted(FIELDS)) | TEXT, JSON, max_size=3)).map(
    lambda parts: encoded(json.dumps({**FIELDS, "model_type": parts[0], **parts[1]}))
)
ADAPTER = objects("peft_type", "lora_alpha", "base_model_name_or_path", "alpha_pattern", "bias")


def read_answers(path):
    """The file as the lines of answers, and as what stands beside them."""
    stem = path.parent / "direct"
    for lines, about in ((path.read_bytes(), b'{"done": {"a": "1", "1": "1"}}'), (b"", path.read_bytes())):
        (path.parent / "direct.jsonl").write_bytes(lines)
        (path.parent / "direct.json").write_bytes(about)
        try:
            answers.read(stem)
        except ValueError as error:
            assert str(path.parent) in str(error)


def read_verdicts(path):
    (path.parent / "judged.jsonl").write_bytes(path.read_bytes())
    answers.read_verdicts(path.parent / "judged")


def read_config(path):
    (path.parent / "config.json").write_bytes(path.read_bytes())
    huggingface.read_config(path.parent)


def read_weights(path):
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(path.read_bytes())
    with tensors.opened(folder):
        pass


def read_index(path):
    folder = path.parent / "indexed"
    folder.mkdir(exist_ok=True)
    (folder / tensors.INDEX).write_bytes(path.read_bytes())
    with tensors.opened(folder):
        pass


def read_adapter(path):
    (path.parent / "adapter_config.json").write_bytes(path.read_bytes())
    adapters.base(path.parent)


READERS = {
    "behaviors.csv": (lambda path: load_behaviors(str(path)), table("Behavior", "BehaviorID") | table("goal", "target")),
    "jailbreakbench.csv": (lambda path: load_behaviors(str(path)), table("Goal", "Target", "Behavior")),
    "strongreject.csv": (lambda path: load_behaviors(str(path)), table("forbidden_prompt", "category")),
    "targets.json": (lambda path: load_behaviors(str(path.with_name("good.csv")), str(path)), TARGETS),
    "refusals.csv": (lambda path: load_behaviors(str(path.with_name("good.csv")), "", str(path)), table("Behavior", "Safe_Response")),
    "chats.jsonl": (lambda path: load_chats(str(path)), CHATS | objects("prompt", "response")),
    "rewrites.jsonl": (lambda path: read_rewrites(str(path)), objects("id", "rewrite", "prompt", "held_out")),
    "templates.jsonl": (lambda path: read_templates(str(path)), objects("name", "template")),
    "templates.yaml": (lambda path: read_templates(str(path)), st.text("ab:-[]{}&*!|>'\"\n #,?%@`0", max_size=40).map(encoded)),
    "benign.jsonl": (lambda path: read_utility_prompts(str(path)), objects("id", "prompt", "response", "form")),
    "xstest.csv": (lambda path: read_utility_prompts(str(path)), table("id", "prompt", "label", "type")),
    "cases.json": (lambda path: read_cases(str(path), BEHAVIORS), CASES),
    "infilled.csv": (lambda path: read_infilled(str(path), BEHAVIORS), table("original_prompt", "inpainted_prompt")),
    "prompts.jsonl": (read_records, RECORD),
    "answers": (read_answers, LINES),
    "verdicts": (read_verdicts, LINES),
    "manifest.json": (manifest.load, st.fixed_dictionaries({"manifest": JSON}).map(lambda value: encoded(json.dumps(value)))),
    "model": (read_config, CONFIG),
    "weights": (read_weights, st.binary(max_size=80).map(lambda data: len(data).to_bytes(8, "little") + data)),
    "index": (read_index, st.fixed_dictionaries({"weight_map": JSON}).map(lambda value: encoded(json.dumps(value)))),
    "adapter": (read_adapter, ADAPTER),
}


@pytest.mark.parametrize("name", READERS)
def test_any_content_is_read_or_is_one_value_error(name, tmp_path_factory):
    read, likely = READERS[name]
    path = tmp_path_factory.mktemp("any") / name
    path.with_name("good.csv").write_text("Behavior,BehaviorID\nPaint it,a\n")
    if name == "model":
        families.read({**FIELDS, "model_type": "llama"})  # imports transformers, which takes seconds

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(likely | ANY)
    def each(content):
        path.write_bytes(content)
        started = time.process_time()
        try:
            read(path)
        except ValueError as error:
            assert "\n" not in str(error) and not isinstance(error, UnicodeError), error
        assert time.process_time() - started < 5

    each()
