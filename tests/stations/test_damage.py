"""Whatever a run wrote and then was cut, damaged, edited or lost is named when it is read; a run that is whole may be moved."""

import json
import logging
import shutil
import types

import numpy as np
import pytest

from dat_jax import report, stations
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding
from dat_jax.data import manifest
from dat_jax.stations import evaluate, own_answers, sample_utility
from dat_jax.stations.subjects import content, identity


def configured(tiny_job, brought):
    """DAT on sampled adversarial and utility prompts, two attacks, two sets of utility prompts and a judge."""
    config = tiny_job.get_config(brought)
    config.training.update({"methods": ("dat",), "steps": 2, "save_every": 1, "watch_every": 0})
    config.utility.update({"samples": 2, "keep": "all", "answers": 2})
    config.evaluation.update({"attacks": ("direct", "prefill"), "behaviors": 2})
    return config


@pytest.fixture(scope="module")
def finished(tiny_job, tmp_path_factory):
    """A folder with what was brought and a workdir in which everything is done."""
    root = tmp_path_factory.mktemp("damage") / "whole"
    tiny_job.bring(root / "brought")
    assert stations.run("all", configured(tiny_job, root / "brought"), str(root / "run")) == 0
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it under other names, with the models beside it."""
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("compilation_cache"))
    (tmp_path / "copy" / "run").rename(tmp_path / "copy" / "moved")
    return tmp_path / "copy"


@pytest.fixture
def config(tiny_job, root):
    return configured(tiny_job, root / "brought")


def cut_at_a_line(data):
    return b"".join(data.splitlines(keepends=True)[:-1])


def cut_in_the_middle(data):
    return data[: len(data) // 2]


def flipped(data):
    """One bit of a byte in the middle that is a letter or digit, so that JSON stays JSON as often as can be."""
    place = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]).isalnum())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def edited(data):
    """What a text editor leaves: another number, text or value in the first line that has one."""
    for old, new in ((b'"seed": 0', b'"seed": 7'), (b'"judge": "', b'"judge": "my'), (b"true", b"false"), (b": ", b": 1")):
        if old in data:
            return data.replace(old, new, 1)
    return data + b" "


DAMAGES = {f.__name__: f for f in (cut_at_a_line, cut_in_the_middle, flipped, edited)} | {"gone": None}
# What the report reads. In parentheses: what it says instead of an error where that file alone is gone.
READ = {
    "config.json": "",
    "seed_0/prompts/prompts.jsonl": "",
    "seed_0/prompts/cost.json": "",
    "seed_0/prompts/provenance.json": "",
    "seed_0/utility_prompts/prompts.jsonl": "",
    "seed_0/utility_prompts/counts.json": "",
    "seed_0/dat/finished.json": "the training is not finished",
    "seed_0/dat/metrics.jsonl": "",
    "seed_0/dat/metrics.json": "written without checksums",
    "seed_0/answers/dat/direct.jsonl": "",
    "seed_0/answers/dat/direct.json": "",
    "seed_0/answers/dat/utility/benign.jsonl": "",
    "seed_0/measures/dat/harmful.jsonl": "",
    "seed_0/measures/dat/harmful.json": "",
    "seed_0/verdicts/refusal_prefix/judge.json": "",
    "seed_0/verdicts/refusal_prefix/dat/direct.jsonl": "",
    "seed_0/verdicts/refusal_prefix/dat/direct.json": "written without checksums",
    "seed_0/verdicts/refusal_prefix/dat/utility/benign.jsonl": "",
}


def damage(path, how):
    if DAMAGES[how] is None:
        path.unlink()
        return
    data = path.read_bytes()
    now = DAMAGES[how](data)
    assert now != data
    path.write_bytes(now)


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", READ)
def test_the_report_names_what_is_damaged(root, name, how, caplog):
    workdir, before = root / "moved", (root / "moved" / "results.json").read_bytes()
    damage(workdir / name, how)
    if how == "gone" and READ[name]:
        report.write(workdir)
        assert READ[name] in caplog.text + (workdir / "report.md").read_text()
        found, expected = (json.loads(text) for text in ((workdir / "results.json").read_text(), before))
        assert found["rows"] == expected["rows"] and found["utility"] == expected["utility"]
        return
    with pytest.raises(ValueError) as caught:
        report.write(workdir)
    assert name.rpartition("/")[2] in str(caught.value) and "\n" not in str(caught.value)
    assert (workdir / "results.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("gone", [("answers/dat/direct",), ("verdicts/refusal_prefix/dat/direct",)])
def test_a_file_that_is_gone_with_its_manifest_is_missed(root, gone):
    """Answers that were judged are named; an attack that nobody judged is said in the report."""
    for name in gone:
        for suffix in (".json", ".jsonl"):
            (root / "moved" / "seed_0" / f"{name}{suffix}").unlink()
    if "answers" in gone[0]:
        with pytest.raises(ValueError, match=r"answers/dat/direct\.jsonl is gone, and .*judged it"):
            report.write(root / "moved")
    else:
        report.write(root / "moved")
        assert "Direct request was answered and is not judged" in (root / "moved" / "report.md").read_text()


@pytest.mark.slow
def test_a_run_and_its_models_go_on_where_they_were_copied_to(root, config, caplog):
    """Nothing is trained, drawn, answered or judged again, and nothing is refused; an attack can be added."""
    caplog.set_level(logging.INFO)
    lines = (root / "moved/seed_0/answers/dat/direct.jsonl").read_bytes()
    assert stations.run("all", config, str(root / "moved")) == 0
    for said in ("sample, seed 0: done", "train, seed 0: done", "evaluate dat, seed 0: done", "dat, seed 0: 0 of 4 files were new"):
        assert said in caplog.text
    config.evaluation.attacks = ("direct", "prefill", "best_of_n")
    assert stations.run("evaluate", config, str(root / "moved")) == 0
    assert (root / "moved/seed_0/answers/dat/direct.jsonl").read_bytes() == lines
    assert content(identity(str(root / "moved/seed_0/dat"))) == content(identity(str(root / "moved/seed_0/dat/")))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [("chats.jsonl", "data.chats"), ("train.csv", "data.behaviors"), ("train.json", "data.targets")])
def test_an_input_that_was_edited_is_refused(root, config, name, key):
    path = root / "brought" / name
    path.write_text(path.read_text().replace("It is 3.", "It is 4.").replace("Paint the", "Draw the").replace("Sure, paint", "Sure: paint"))
    with pytest.raises(ValueError, match=rf"config\.{key}: .*{name} is not what .* its checksum was \w+, now it is \w+; put the file back"):
        stations.run("train", config, str(root / "moved"))


@pytest.mark.slow
def test_another_model_under_the_old_name_is_refused(root, config, tiny_job):
    shutil.rmtree(root / "brought" / "target")
    tiny_job.write_model(root / "brought" / "target", "llama", seed=2)
    with pytest.raises(ValueError, match=r"config\.target\.model: .*target is not what .* was begun with"):
        stations.run("train", config, str(root / "moved"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "inputs.json"])
@pytest.mark.parametrize("text", [None, "[]", '{"training.steps": 2, "manifest": {"format": 1, "checksum": "0"}}'])
def test_what_a_workdir_was_begun_with_is_not_written_anew(root, config, name, text):
    path = root / "moved" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=rf"{name} (is gone|holds a JSON list|was damaged or edited)"):
        stations.run("train", config, str(root / "moved"))
    assert path.exists() == (text is not None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("finished.json", "train"), ("answers/dat/direct.jsonl", "evaluate"), ("answers", "judge")])
def test_the_stations_name_it_too(root, config, name, mode):
    name = {"answers": "verdicts/refusal_prefix/dat/direct.jsonl", "finished.json": "dat/finished.json"}.get(name, name)
    damage(root / "moved" / "seed_0" / name, "flipped")
    with pytest.raises(ValueError, match=name):
        stations.run(mode, config, str(root / "moved"))


@pytest.mark.slow
def test_a_damaged_checkpoint_of_a_finished_training_is_not_evaluated_as_an_older_step(root, config):
    folder = root / "moved" / "seed_0" / "dat"
    victim = max((p for p in (folder / "checkpoints" / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(victim, "flipped")
    config.evaluation.attacks = ("direct", "prefill", "best_of_n")
    with pytest.raises(ValueError, match=r"finished\.json says that the training ended after step 2, and the newest whole .* of step 1"):
        stations.run("evaluate", config, str(root / "moved"))
    (folder / "finished.json").unlink()  # as it says
    assert stations.run("train", config, str(root / "moved")) == 0
    assert manifest.read(folder / "finished.json")["resumed_at"] == 1


def test_progress_of_a_search_that_is_damaged_is_not_used(tmp_path, caplog):
    store = evaluate.FileStore(tmp_path / "a.progress.npz", ["1"])
    store.save({"step": np.asarray(3), "best": np.arange(6.0)})
    data = (tmp_path / "a.progress.npz").read_bytes()
    for start in range(0, len(data), 7):  # wherever a bit flips, the arrays are those that were saved, or none
        (tmp_path / "a.progress.npz").write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
        if found := store.load():
            assert found["step"] == 3 and found["best"].tolist() == list(range(6))
    assert "was damaged" in caplog.text
    (tmp_path / "a.progress.npz").write_bytes(data[: len(data) // 2])
    assert store.load() == {}


@pytest.mark.parametrize("how", DAMAGES)
def test_the_targets_own_answers_are_checked_when_an_asking_goes_on(tmp_path, how, caplog):
    calls = []

    def answer(attempts):
        calls.append([attempt.prompt for attempt in attempts])
        return [f"answer to {attempt.prompt}" for attempt in attempts]

    victim = types.SimpleNamespace(decoding=Decoding(8, 8, 8, 1, 0.0, "user", None), answer=answer)
    attempts, path = [Attempt(str(i), f"p{i}", "") for i in range(20)], tmp_path / "own_answers.jsonl"
    whole = sample_utility.asked(victim, attempts, path)
    assert sample_utility.asked(victim, attempts, path) == whole and len(calls) == 2
    damage(path, "flipped" if how == "edited" else how)
    if how == "gone":
        assert sample_utility.asked(victim, attempts, path) == whole and "made again" in caplog.text
    else:
        with pytest.raises(ValueError, match=r"own_answers\.jsonl was cut, damaged or edited"):
            sample_utility.asked(victim, attempts, path)


def test_answers_of_an_unfinished_call_are_checked(tmp_path):
    partial, header = tmp_path / "c.unfinished", {"model": "m", "settings": {}}
    rows = [{"prompt": f"p{i}", "answer": f"a{i}", "label": "comply"} for i in range(3)]
    written = [header | {"checksum": manifest.of_json(rows)}, *rows]
    partial.write_text("".join(json.dumps(row) + "\n" for row in written))
    assert own_answers._resume(partial, header, ["p0", "p1", "p2"]) == rows
    partial.write_text("".join(json.dumps(row) + "\n" for row in written[:-1]))
    with pytest.raises(ValueError, match=r"c\.unfinished was cut, damaged or edited: its 2 answers"):
        own_answers._resume(partial, header, ["p0", "p1", "p2"])
