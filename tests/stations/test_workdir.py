"""A work directory knows what it was made with: which keys may change between two calls, and which are refused."""

import json

import jax
import pytest
from etils import epath

from dat_jax.config import defaults
from dat_jax.stations import workdir


def at(config, key):
    """The group of a dotted key and its name in there."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mesh.fsdp", 2),
        ("seeds", (0, 1)),
        ("training.methods", ("cat",)),
        ("training.save_every", 7),
        ("evaluation.attacks", ("direct",)),
        ("evaluation.judges", ("world",)),
        ("evaluation.compare", ("x",)),
        ("attacks.best_of_n.attempts", 99),
        ("report.formats", ("inspect",)),
        ("data.eval_behaviors", "more.csv"),
        ("data.rewrites", "r.jsonl"),
        ("data.benign", "b.jsonl"),
        ("data.borderline", "b.jsonl"),
    ],
)
def test_what_is_evaluated_and_where_a_run_works_may_change(tmp_path, key, value):
    config = defaults()
    workdir.check_claim(tmp_path, config)
    workdir.claim(tmp_path, config)
    workdir.check_claim(tmp_path, config)
    group, name = at(config, key)
    assert json.loads((tmp_path / "config.json").read_text())[key] != value
    group[name] = value
    workdir.check_claim(tmp_path, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", 7),
        ("training.micro_batch", 8),
        ("training.lora.rank", 3),
        ("target.model", "m"),
        ("target.checkpoint", "run/seed_0/cat"),
        ("methods.cat.perturbation.radius", 0.5),
        ("methods.cat.objective.slope", 0.5),
        ("sampler.samples", 7),
        ("data.behaviors", "b.csv"),
        ("data.system", "be kind"),
    ],
)
def test_what_was_trained_may_not(tmp_path, key, value):
    config = defaults()
    workdir.claim(tmp_path, config)
    group, name = at(config, key)
    was, group[name] = group[name], value
    with pytest.raises(ValueError) as caught:
        workdir.check_claim(tmp_path, config)
    assert str(caught.value) == f"{tmp_path} was made with config.{key} = {was!r}, now it is {value!r}; use another --workdir"


@pytest.mark.parametrize(
    ("path", "folder"),
    [("configs/gemma_tpu.py", "runs/gemma_tpu"), ("mine.py", "runs/mine"), ("tests/tiny_job.py:/some/folder.x", "runs/tiny_job")],
)
def test_a_call_without_a_workdir_uses_the_configs_name(path, folder):
    assert workdir.default(path) == folder


def test_programs_are_kept_in_the_workdir_unless_jax_was_told_where(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        workdir.keep_programs(epath.Path(tmp_path))
        assert jax.config.jax_compilation_cache_dir == before  # the tests' own variable
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        workdir.keep_programs(epath.Path(tmp_path))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compilation_cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
