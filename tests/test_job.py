"""The whole job on a user's own files at a tiny size: stations in order, resume, refusal of bad input before anything is computed."""

import importlib.util
import json
import pathlib

import pytest

from dat_jax import job, models
from dat_jax.config import validate

spec = importlib.util.spec_from_file_location("job_tiny", pathlib.Path(__file__).parent / "tiny_job.py")
tiny_job = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_job)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brought")
    tiny_job.bring(folder)
    return folder


@pytest.fixture
def config(brought):
    return tiny_job.get_config(brought)


@pytest.mark.slow
def test_the_whole_job_resumes_and_exports(config, tmp_path, monkeypatch):
    validate(config)
    monkeypatch.chdir(tmp_path)  # the README's commands name the workdir relatively
    assert job.run("all", config, ".") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = {(row["method"], row["attack"]) for row in results["rows"]}
    assert {("undefended", "direct"), ("cat", "embedding"), ("dat", "prefill"), ("dat", "worst_case")} <= found
    assert all(row["behaviors"] == 3 for row in results["rows"])
    assert {row["method"] for row in results["utility"]} == {"undefended", "cat", "dat"}
    assert "<svg" in (tmp_path / "report.html").read_text() and (tmp_path / "report.md").exists()
    lines = [json.loads(line) for line in (tmp_path / "seed_0" / "dat" / "metrics.jsonl").read_text().splitlines()]
    terms = {"loss/away", "loss/toward", "loss/utility", "attack/gain", "attack/at_radius", "gradient_norm", "tokens_per_second"}
    assert terms <= set(lines[0])
    assert any("watch/benign_refused" in line for line in lines)
    prompts = [json.loads(line) for line in (tmp_path / "seed_0" / "prompts" / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 6 * 4 and sum(p["selected"] for p in prompts) <= 6 * 2

    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jsonl")}
    assert job.run("all", config, str(tmp_path)) == 0  # all is done: nothing is computed again
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jsonl")} == stamps

    assert job.run("export", config, str(tmp_path)) == 0
    for method in ("cat", "dat"):
        folder = tmp_path / "seed_0" / "export" / method
        back = models.load(str(folder))
        assert back.tokenizer.chat_template == tiny_job.tokenizer().chat_template
        assert "worst_case" in (folder / "README.md").read_text()
        assert (folder.parent / f"{method}-adapter" / "adapter_model.safetensors").exists()

    config.attack.steps = 2
    with pytest.raises(ValueError, match=r"was made with config\.attack\.steps = 1, now it is 2; use another --workdir"):
        job.run("all", config, str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.eval_behaviors": "train.csv", "data.eval_targets": "train.json"}, "is one of the training behaviors"),
        ({"data.prompt_length": 20}, r"the prompt of behavior 'paint_drum' has \d+ tokens; allowed: config.data.prompt_length = 20"),
        ({"data.behaviors": "tran.csv"}, r"tran\.csv: no such file; did you mean train\.csv\?"),
        ({"data.benign": "train.csv"}, r"train\.csv, line 1: no column 'prompt'"),
        ({"data.chats": "train.json"}, r"train\.json, line 1: no key 'messages'"),
        ({"target.model": "nowhere"}, "is neither a folder nor a hub id"),
    ],
)
def test_bad_files_are_found_before_a_model_is_loaded(config, brought, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr(job, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for key, value in change.items():
        group, name = key.split(".")
        config[group][name] = str(brought / value) if isinstance(value, str) else value
    with pytest.raises(ValueError, match=message):
        job.run("all", config, str(tmp_path))


def test_training_without_samples_says_what_to_do(config, tmp_path):
    config.methods = ("dat",)
    with pytest.raises(ValueError, match="no prompts were sampled yet; run --mode=sample first"):
        job.run("train", config, str(tmp_path))


@pytest.mark.parametrize("workdir, processes", [("gs://bucket/run", 1), ("run", 2)])
def test_the_embedded_world_is_built_by_one_process_in_a_local_folder(config, workdir, processes, monkeypatch):
    monkeypatch.setattr(job.sharding, "initialize", lambda *_: pytest.fail("hosts were waited for"))
    config.world.enabled, config.mesh.processes = True, processes
    with pytest.raises(
        ValueError, match=rf"config\.world\.enabled is True with --workdir={workdir} and config\.mesh\.processes = {processes}"
    ):
        job.run("all", config, workdir)
