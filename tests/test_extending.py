"""The examples of docs/extending.md, run from the document's own text: each is at most 40 lines, and works once its row is in the table."""

import ast
import dataclasses
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from dat_jax import attacks, judges, methods, models, stations
from dat_jax.config import check_arguments, defaults, validate
from dat_jax.models import families

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (dat_jax/\S+)\.py\n(.*?)```", re.DOTALL)
SOURCES = dict(BLOCK.findall((ROOT / "docs" / "extending.md").read_text()))


def module(monkeypatch, path):
    """The module of an example, made from the document's text and found by imports for the time of a test."""
    made = types.ModuleType(path.replace("/", "."))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(SOURCES[path], path, "exec"), made.__dict__)
    return made


def test_there_are_four_examples_of_at_most_forty_lines():
    assert set(SOURCES) == {
        "dat_jax/methods/refusal_sft", "dat_jax/attacks/random_words", "dat_jax/judges/short_answer", "dat_jax/models/families/vaultgemma"
    }  # fmt: skip
    assert all(source.count("\n") <= 40 for source in SOURCES.values())


def test_the_method_of_the_document_is_the_one_that_is_shipped():
    path = "dat_jax/methods/refusal_sft"
    assert SOURCES[path] == (ROOT / f"{path}.py").read_text()


def names_of_methods(path):
    """The methods that a file names: as a text, or as the module that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant):
            found |= {node.value} & set(methods.METHODS)
        elif isinstance(node, ast.ImportFrom) and node.module == "dat_jax.methods":
            found |= {alias.name for alias in node.names} & set(methods.METHODS)
    return found


def test_a_method_is_one_file_and_its_row():
    """No other file knows it by name, but those that choose methods for a run, and methods that are CAT with something else."""
    package = ROOT / "dat_jax"
    choosing = {"config.py", "presets.py", "compilation/table.py"}
    named = {str(path.relative_to(package)): names_of_methods(path) for path in package.rglob("*.py")}
    assert named["methods/lat.py"] == {"lat", "dat_lat", "cat"}, "nothing is found: the test shows nothing"
    built_on_cat = {f"methods/{name}.py" for name in ("dat", "lat", "mixat", "r2d2", "self_consistency")}
    for name in methods.METHODS:
        own = name.removeprefix("dat_")  # a composed one stands in the file of what it is composed of
        files = {path for path, found in named.items() if name in found} - choosing - (built_on_cat if name == "cat" else set())
        assert files in ({f"methods/{own}.py"}, {f"methods/{own}.py", "methods/__init__.py"}), (name, files)


@pytest.mark.slow
def test_a_method_an_attack_and_a_judge_take_part_in_a_whole_run(monkeypatch, tmp_path, tiny_job):
    # Under a name that no row has, so that nothing but the row that is added here can make it work.
    method = dataclasses.replace(module(monkeypatch, "dat_jax/methods/refusal_sft").METHOD, name="tuned", title="Tuned to refuse")
    assert method.name not in methods.METHODS
    attack = module(monkeypatch, "dat_jax/attacks/random_words").ATTACK
    judge = module(monkeypatch, "dat_jax/judges/short_answer").JUDGE
    for table, row in ((methods.METHODS, method), (attacks.ATTACKS, attack), (judges.JUDGES, judge)):
        monkeypatch.setitem(table, row.name, row)
    assert defaults().attacks.random_words.rounds == 3 and defaults().methods.tuned.refusal_weight == 1.0
    with pytest.raises(ValueError, match=r"did you mean --config.attacks.random_words.rounds\?"):
        check_arguments(["--config.attacks.random_words.round=2"])

    tiny_job.bring(tmp_path / "brought")
    config = tiny_job.get_config(tmp_path / "brought")
    config.training.methods = ("undefended", "tuned")
    config.evaluation.attacks, config.evaluation.judges = ("direct", "random_words"), ("short_answer", "refusal_prefix")
    config.judges.short_answer.words = 0
    with pytest.raises(ValueError, match=r"config\.judges\.short_answer\.words is 0; allowed: an integer >= 1"):
        validate(config)
    config.judges.short_answer.words = 2
    validate(config)
    assert stations.run("all", config, str(tmp_path / "run")) == 0

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = {(row["method"], row["attack"]) for row in results["rows"]}
    assert {(m, a) for m in config.training.methods for a in ("direct", "random_words", "worst_case:text")} <= found
    assert results["judges"] == ["short_answer", "refusal_prefix"] and results["agreement"][0]["answers"] == 2 * 2 * 3
    lines = (tmp_path / "run" / "seed_0" / "tuned" / "metrics.jsonl").read_text().splitlines()
    assert {"loss/refusal", "loss/utility", "loss/total"} <= set(json.loads(lines[0]))
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Tuned to refuse" in report and "Random words" in report
    prompts = (tmp_path / "run" / "seed_0" / "answers" / "undefended" / "random_words.jsonl").read_text().splitlines()
    assert any(json.loads(line)["prompt"].split()[-1] in attack.attempts.__globals__["WORDS"] for line in prompts)


def test_a_model_family_equals_transformers(monkeypatch, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    vaultgemma = module(monkeypatch, "dat_jax/models/families/vaultgemma")
    monkeypatch.setitem(families.FAMILIES, "vaultgemma", vaultgemma)
    config = transformers.VaultGemmaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        query_pre_attn_scalar=12, sliding_window=4, attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for tensor in reference.parameters():
            tensor.copy_(torch.randn(tensor.shape) * (0.2 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5))
    reference.save_pretrained(tmp_path)
    model = models.load(str(tmp_path))
    tokens = np.random.default_rng(0).integers(0, 96, (2, 11))
    expected = reference(torch.tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(models.logits(model.params, model.config, tokens, np.ones((2, 11), bool)), expected, rtol=1e-4, atol=1e-4)
