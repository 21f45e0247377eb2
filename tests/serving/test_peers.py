"""The tools that the endpoint is for, where they are installed: lm-eval gets the numbers of its own reader of the folder, garak finishes.

They are no requirement of the tests: `pip install 'lm_eval[api,hf]==0.4.13'` and `pip install garak==0.17.1`, each in an environment of its
own, and this file with that environment's Python. docs/serving.md has the commands by hand.
"""

import importlib.util
import json
import os
import shutil
import subprocess

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'dat_jax[serve]')")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'dat_jax[serve]')")

from dat_jax.serving.programs import Programs
from dat_jax.serving.requests import ALTERNATIVES, Limits
from dat_jax.serving.settings import Serve
from dat_jax.stations import serve as station

P, N = 16, 8
ITEMS = [
    {"question": "how did people paint the wood", "choices": ["wash", "with a brush", "the"], "answer": 1},
    {"question": "the door", "choices": ["wash the wood", "d"], "answer": 0},
]


@pytest.fixture(scope="module")
def address(folder, small_model, in_a_thread):
    limits = Limits(("small",), 8 * P, N, small_model.config.vocab_size, 64)
    with in_a_thread(station.made(Programs(small_model, P, N, 4, ALTERNATIVES), limits, Serve(), "")) as found:
        yield found


def task(tmp_path):
    """A task like ARC's on two items of our own."""
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    }


def test_lm_eval_gets_the_numbers_of_its_own_reader(address, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'lm_eval[api,hf]==0.4.13')")
    ours = {"model": "small", "base_url": f"{address}/v1/completions", "tokenizer": str(folder), "tokenizer_backend": "huggingface"}
    ours |= {"max_length": 8 * P + 1, "num_concurrent": 4}
    theirs = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "max_length": 8 * P}
    found = [
        lm_eval.simple_evaluate(model, args, [task(tmp_path)], batch_size=2, bootstrap_iters=0)
        for model, args in (("local-completions", ours), ("hf", theirs))
    ]
    numbers = [[part for sample in one["samples"]["ours"] for part in sample["filtered_resps"]] for one in found]
    assert len(numbers[0]) == 5 and [greedy for _, greedy in numbers[0]] == [greedy for _, greedy in numbers[1]]
    assert [value for value, _ in numbers[0]] == pytest.approx([value for value, _ in numbers[1]], abs=1e-4)
    assert found[0]["results"]["ours"]["acc,none"] == found[1]["results"]["ours"]["acc,none"]


def test_garak_finishes(address, tmp_path):
    if importlib.util.find_spec("garak") is None and not shutil.which("garak"):
        pytest.skip("garak is not installed (pip install garak==0.17.1)")
    options = {"openai": {"OpenAICompatible": {"uri": f"{address}/v1/", "max_tokens": N, "temperature": 0.7}}}
    (tmp_path / "options.json").write_text(json.dumps(options))
    import sys

    program = ["garak"] if shutil.which("garak") else [sys.executable, "-m", "garak"]
    command = [*program, "--target_type", "openai.OpenAICompatible", "--target_name", "small", "--probes", "test.Test"]
    command += ["--generator_option_file", str(tmp_path / "options.json"), "--generations", "2", "--report_prefix", "ours"]
    homes = {name: str(tmp_path) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    done = subprocess.run(
        command, env=os.environ | homes | {"OPENAICOMPATIBLE_API_KEY": "none"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [report] = (tmp_path / "garak" / "garak_runs").glob("ours.report.jsonl")
    attempts = [row for row in map(json.loads, report.read_text().splitlines()) if row["entry_type"] == "attempt" and row["status"] == 2]
    assert len(attempts) == 8 and all(len(row["outputs"]) == 2 and None not in row["outputs"] for row in attempts)
