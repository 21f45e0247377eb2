"""The whole job on a user's own files at a tiny size: stations in order, resume, refusal of bad input before anything is computed."""

import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from dat_jax import models, sharding, stations
from dat_jax.config import validate
from dat_jax.stations import sample, subjects, train
from dat_jax.stations.inputs import read_inputs


def stamps(folder):
    """When each file below a folder was written; the compiler's cache is no result."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "compilation_cache" not in p.parts}


def changed(folder, before):
    """The names of the files that were written since."""
    return {str(p.relative_to(folder)) for p, stamp in stamps(folder).items() if before.get(p) != stamp}


@pytest.mark.slow
def test_the_whole_job_resumes_and_exports(tiny_job, config, tmp_path, monkeypatch):
    validate(config)
    monkeypatch.chdir(tmp_path)  # the README's commands name the workdir relatively
    assert stations.run("all", config, ".") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = {(row["method"], row["attack"]) for row in results["rows"]}
    worst = ("worst_case", "worst_case:text", "worst_case:prefill", "worst_case:embedding")
    assert {("undefended", "direct"), ("cat", "embedding"), ("dat", "prefill"), *(("dat", name) for name in worst)} <= found
    assert all(row["behaviors"] == 3 for row in results["rows"])
    assert {row["method"] for row in results["utility"]} == {"undefended", "cat", "dat"}
    assert "<svg" in (tmp_path / "report.html").read_text() and (tmp_path / "report.md").exists()
    lines = [json.loads(line) for line in (tmp_path / "seed_0" / "dat" / "metrics.jsonl").read_text().splitlines()]
    terms = {"loss/away", "loss/toward", "loss/utility", "attack/gain", "attack/at_radius", "gradient_norm", "tokens_per_second"}
    assert terms <= set(lines[0])
    assert any("watch/benign_refused" in line for line in lines)
    prompts = [json.loads(line) for line in (tmp_path / "seed_0" / "prompts" / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 6 * 4 and sum(p["selected"] for p in prompts) <= 6 * 2

    answers = {p.relative_to(tmp_path / "seed_0" / "answers") for p in (tmp_path / "seed_0" / "answers").rglob("*.jsonl")}
    verdicts = tmp_path / "seed_0" / "verdicts" / "refusal_prefix"
    assert {p.relative_to(verdicts) for p in verdicts.rglob("*.jsonl")} == answers
    assert len(answers) == 3 * (4 + 2)

    before = stamps(tmp_path)
    assert stations.run("all", config, str(tmp_path)) == 0  # all is done: nothing is computed again
    assert changed(tmp_path, before) == {"config.json", "results.json", "report.md", "report.html"}

    assert stations.run("export", config, str(tmp_path)) == 0
    for method in ("cat", "dat"):
        folder = tmp_path / "seed_0" / "export" / method
        back = models.load(str(folder))
        assert back.tokenizer.chat_template == tiny_job.tokenizer().chat_template
        assert "worst_case" in (folder / "README.md").read_text()
        assert (folder.parent / f"{method}-adapter" / "adapter_model.safetensors").exists()

    config.methods.cat.perturbation.steps = 2
    message = r"was made with config\.methods\.cat\.perturbation\.steps = 1, now it is 2; use another --workdir"
    with pytest.raises(ValueError, match=message):
        stations.run("all", config, str(tmp_path))


@pytest.mark.slow
def test_refreshed_rounds_are_drawn_for_the_current_target_and_survive_a_kill(config, tmp_path, monkeypatch):
    """Rounds 1 and 2 start at steps 3 and 5; the checkpoint before the kill, of step 3, lies within round 1."""
    config.training.methods = ("dat",)
    config.sampler.refresh_every = 2
    config.training.update({"steps": 6, "save_every": 3, "watch_every": 0, "learning_rate": 0.05})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    loaded, layers, asked, draw = [], [], [], sample.samples_of
    undefended = models.load(config.target.model).params["layers"]["q"]
    text = {behavior.id: behavior.text for behavior in read_inputs(config, tmp_path, 0).behaviors}

    def spy_load(group, mesh, load=sample.load_model):
        loaded.append(group.model)
        model = load(group, mesh)
        if group.model == config.sampler.model:
            layers.append(weakref.ref(model.params["layers"]["q"]))
        return model

    def spy_target(config, mesh, load=sample.load_target):
        held = [array for array in jax.live_arrays() if array.shape == undefended.shape and id(array) not in before]
        assert not held  # the sampler's layers, of the same shape, have left the memory
        return load(config, mesh)

    def label_by_weights(inputs, model, attempts, requests, judge, mesh):
        assert requests == [text[attempt.behavior] for attempt in attempts]
        assert layers and not any(layer() is not None for layer in layers)  # the target judges alone
        same = bool((model.params["layers"]["q"] == undefended).all())
        asked.append("undefended" if same else "current")
        return ["refuse" if same else "comply"] * len(attempts)

    def killed_in_round_2(inputs, sampler, folder, round):
        if round == 2:
            raise KeyboardInterrupt
        return draw(inputs, sampler, folder, round)

    for module in (sample, subjects, train):
        monkeypatch.setattr(module, "load_model", spy_load)
    monkeypatch.setattr(sample, "ask", label_by_weights)
    monkeypatch.setattr(sample, "load_target", spy_target)
    before = {id(array) for array in jax.live_arrays()}
    assert stations.run("sample", config, str(whole)) == 0
    shutil.copytree(whole, cut)
    offline = {p.name: p.read_bytes() for p in (whole / "seed_0" / "prompts").iterdir() if p.is_file()}
    loaded.clear()
    assert stations.run("train", config, str(whole)) == 0
    assert loaded == [config.target.model, *[config.sampler.model] * 2]  # the sampler once for each round
    assert asked == ["undefended", "current", "current"]

    monkeypatch.setattr(sample, "samples_of", killed_in_round_2)
    with pytest.raises(KeyboardInterrupt):
        stations.run("train", config, str(cut))
    assert not (cut / "seed_0" / "prompts" / "round_2").exists()
    monkeypatch.setattr(sample, "samples_of", draw)
    assert stations.run("train", config, str(cut)) == 0
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
    ends = []
    for folder in (whole, cut):
        mesh = sharding.make_mesh(1, 1, 1)
        (subject,) = subjects.subjects(read_inputs(config, folder / "seed_0", 0), mesh)
        ends.append(subject.load(lambda: models.load(config.target.model)).params)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert not bool((ends[0]["layers"]["q"] == undefended).all())


@pytest.fixture
def evaluation(config):
    """The target alone, attacked twice."""
    config.training.methods = ()
    config.evaluation.update({"attacks": ("direct", "best_of_n"), "behaviors": 2})
    config.data.borderline = ""
    return config


@pytest.mark.slow
def test_each_station_leaves_its_own_files_and_the_report_loads_no_model(evaluation, tmp_path, monkeypatch):
    def written(mode):
        before = stamps(tmp_path)
        assert stations.run(mode, evaluation, str(tmp_path)) == 0
        return changed(tmp_path, before) - {"config.json", "inputs.json"}

    files = {"best_of_n", "direct", "utility/benign"}
    assert written("train") == written("sample") == set()  # nothing is trained, so nothing is sampled
    found = [*(f"answers/target/{name}" for name in files), "measures/target/harmful"]
    expected = {f"seed_0/{name}{end}" for name in found for end in (".json", ".jsonl")}
    assert written("evaluate") == expected | {"seed_0/answers/target.plan.json"}
    written_to = [f"target/{file}{end}" for file in files for end in (".json", ".jsonl")]
    verdicts = {f"seed_0/verdicts/refusal_prefix/{name}" for name in ("judge.json", *written_to)}
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        assert written("judge") == verdicts
        assert written("evaluate") == written("judge") == set()
        patch.setattr(sharding, "make_mesh", lambda *_: pytest.fail("a mesh was made"))
        assert written("report") == {"results.json", "report.md", "report.html"}
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["method"], row["attack"], row["behaviors"]) for row in rows} >= {("target", "direct", 2), ("target", "best_of_n", 2)}

    evaluation.evaluation.judges = ("refusal_topic", "refusal_prefix")  # another judge answers nothing again
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        topic = {name.replace("refusal_prefix", "refusal_topic") for name in verdicts}
        assert written("all") == topic | {"results.json", "report.md", "report.html"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["judges"] == ["refusal_topic", "refusal_prefix"]
    assert {row["judge"] for row in results["by_judge"]} == {"refusal_topic", "refusal_prefix"}
    (agreement,) = results["agreement"]
    assert (agreement["first"], agreement["second"], agreement["answers"]) == ("refusal_topic", "refusal_prefix", 2 + 4)


@pytest.mark.slow
def test_behaviors_of_a_second_file_are_answered_and_judged_alone(evaluation, tmp_path):
    evaluation.evaluation.behaviors = 0
    assert stations.run("all", evaluation, str(tmp_path / "run")) == 0
    kept = (tmp_path / "run/seed_0/answers/target/direct.jsonl").read_text()
    (tmp_path / "more.csv").write_text("Behavior,BehaviorID\nPolish the shoe,polish_shoe\n")
    (tmp_path / "more.json").write_text(json.dumps({"polish_shoe": "Sure, polish_shoe"}))
    for key, name in (("eval_behaviors", "more.csv"), ("eval_targets", "more.json")):
        evaluation.data[key] += f",{tmp_path / name}"
    before = stamps(tmp_path / "run")
    assert stations.run("all", evaluation, str(tmp_path / "run")) == 0
    lines = (tmp_path / "run/seed_0/answers/target/direct.jsonl").read_text()
    assert lines.startswith(kept) and lines.count("\n") == kept.count("\n") + 1 and "polish_shoe" in lines
    assert not any("utility" in name for name in changed(tmp_path / "run", before))
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert {row["behaviors"] for row in rows} == {4}


def test_a_selection_that_does_not_ask_the_target_loads_none(config, tmp_path, monkeypatch):
    loaded, load = [], sample.load_model
    monkeypatch.setattr(sample, "load_model", lambda group, mesh: loaded.append(group.model) or load(group, mesh))
    monkeypatch.setattr(sample, "load_target", lambda *_: pytest.fail("the target was loaded"))
    config.training.methods = ("dat",)
    config.sampler.selection = "random"
    assert stations.run("sample", config, str(tmp_path)) == 0
    assert loaded == [config.sampler.model]


def test_training_without_samples_says_what_to_do(config, tmp_path):
    config.training.methods = ("dat",)
    with pytest.raises(ValueError, match="no prompts were sampled yet; run --mode=sample first"):
        stations.run("train", config, str(tmp_path))


@pytest.mark.parametrize("workdir, processes", [("gs://bucket/run", 1), ("run", 2)])
def test_the_embedded_world_is_built_by_one_process_in_a_local_folder(config, workdir, processes, monkeypatch):
    monkeypatch.setattr(sharding, "initialize", lambda *_: pytest.fail("hosts were waited for"))
    config.world.enabled, config.mesh.processes = True, processes
    with pytest.raises(
        ValueError, match=rf"config\.world\.enabled is True with --workdir={workdir} and config\.mesh\.processes = {processes}"
    ):
        stations.run("all", config, workdir)
