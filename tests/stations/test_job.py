"""The whole job on a user's own files at a tiny size: stations in order, resume, refusal of bad input before anything is computed."""

import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
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


@pytest.mark.slow
def test_refreshed_rounds_are_drawn_for_the_current_target_and_survive_a_kill(config, tmp_path, monkeypatch):
    """Rounds 1 and 2 start at steps 3 and 5; the checkpoint before the kill, of step 3, lies within round 1."""
    config.methods = ("dat",)
    config.sampler.refresh_every = 2
    config.training.update({"steps": 6, "save_every": 3, "watch_every": 0, "learning_rate": 0.05})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    loaded, asked, draw = [], [], job.draw_pool
    undefended = models.load(config.target.model).params["layers"]["q"]

    def spy_load(group, mesh, load=job.load_model):
        loaded.append(group.model)
        return load(group, mesh)

    def label_by_weights(inputs, model, attempts, judge, mesh):
        same = bool((model.params["layers"]["q"] == undefended).all())
        asked.append("undefended" if same else "current")
        return ["refuse" if same else "comply"] * len(attempts)

    def killed_in_round_2(inputs, sampler, target, folder, round, mesh):
        if round == 2:
            raise KeyboardInterrupt
        return draw(inputs, sampler, target, folder, round, mesh)

    monkeypatch.setattr(job, "load_model", spy_load)
    monkeypatch.setattr(job, "ask", label_by_weights)
    assert job.run("sample", config, str(whole)) == 0
    shutil.copytree(whole, cut)
    offline = {p.name: p.read_bytes() for p in (whole / "seed_0" / "prompts").iterdir() if p.is_file()}
    loaded.clear()
    assert job.run("train", config, str(whole)) == 0
    assert loaded == [config.target.model, config.sampler.model]  # the sampler once, for both rounds
    assert asked == ["undefended", "current", "current"]

    monkeypatch.setattr(job, "draw_pool", killed_in_round_2)
    with pytest.raises(KeyboardInterrupt):
        job.run("train", config, str(cut))
    assert not (cut / "seed_0" / "prompts" / "round_2").exists()
    monkeypatch.setattr(job, "draw_pool", draw)
    assert job.run("train", config, str(cut)) == 0
    assert asked == ["undefended", "current", "current"] + ["current"] * 2  # round 1 was not drawn again
    assert json.loads((cut / "seed_0" / "dat" / "finished.json").read_text())["resumed_at"] == 3

    for folder in (whole, cut):
        assert {p.name: p.read_bytes() for p in (folder / "seed_0" / "prompts").iterdir() if p.is_file()} == offline
    drawn = {}
    for number in (0, 1, 2):
        name = f"round_{number}/prompts.jsonl" if number else "prompts.jsonl"
        text = (whole / "seed_0" / "prompts" / name).read_text()
        assert (cut / "seed_0" / "prompts" / name).read_text() == text
        records = [json.loads(line) for line in text.splitlines()]
        assert {(r["settings"]["round"], r["compliance"]) for r in records} == {(number, float(number > 0))}
        assert 0 < sum(r["selected"] for r in records) < len(records)
        drawn[number] = [r["prompt"] for r in records]
    assert drawn[0] != drawn[1] != drawn[2]
    ends = [job.defended(job.read_inputs(config, f / "seed_0", 0), "dat", models.load(config.target.model)).params for f in (whole, cut)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


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
