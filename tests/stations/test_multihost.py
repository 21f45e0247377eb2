"""Sampling and evaluation on several hosts, imitated by processes on loopback: what two of them leave is what one leaves."""

import importlib.util
import json
import pathlib

import pytest

spec = importlib.util.spec_from_file_location("stations_tiny", pathlib.Path(__file__).parent / "tiny_job.py")
tiny_job = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_job)

ATTACKS = "--config.evaluation.attacks=('direct','best_of_n','embedding')"
SMALL = ("--config.methods=('undefended','dat')", "--config.training.watch_every=0", ATTACKS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What was brought, and the workdirs of one process with two devices and of two processes with one each."""
    root = tmp_path_factory.mktemp("stations")
    tiny_job.bring(root / "brought")
    for processes in (1, 2):
        running = tiny_job.start(root / "brought", root / f"by_{processes}", "all", *SMALL, processes=processes, devices=2)
        assert tiny_job.ended(running) == [0] * processes
    return root


def results(workdir):
    """Every prompt, answer and label of a workdir, and the table of the report."""
    paths = [*workdir.glob("seed_0/prompts/**/*.jsonl"), *workdir.glob("seed_0/evaluation/**/*.jsonl")]
    found = {str(path.relative_to(workdir)): path.read_text() for path in paths}
    table = json.loads((workdir / "results.json").read_text())
    return found | {"rows": table["rows"], "utility": table["utility"]}


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(folders):
    one, two = results(folders / "by_1"), results(folders / "by_2")
    assert one.keys() == two.keys()
    assert {
        "seed_0/prompts/prompts.jsonl",
        "seed_0/evaluation/dat/embedding.jsonl",
        "seed_0/evaluation/dat/utility/benign.jsonl",
    } <= one.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_two_processes_go_on_with_what_is_half_done_and_the_first_alone_writes(folders, tmp_path):
    workdir, before = folders / "by_2", results(folders / "by_2")
    gone = ["prompts/prompts.jsonl", "prompts/cost.json", "evaluation/dat/direct.jsonl", "evaluation/undefended/utility/benign.jsonl"]
    gone += [f"prompts/samples/{path.name}" for path in sorted((workdir / "seed_0/prompts/samples").glob("*.cost.json"))[1:3]]
    for name in gone:
        (workdir / "seed_0" / name).unlink()
    report = {name: (workdir / name).stat().st_mtime_ns for name in ("report.html", "report.md", "results.json")}
    running = tiny_job.start(folders / "brought", workdir, "all", *SMALL, processes=2, devices=2, TINY_JOB_WRITES=str(tmp_path))
    assert tiny_job.ended(running) == [0, 0]
    assert results(workdir) == before
    assert all((workdir / name).stat().st_mtime_ns > stamp for name, stamp in report.items())
    written = (tmp_path / "0").read_text().splitlines()
    assert {str(workdir / "seed_0" / name) for name in gone} | {str(workdir / name) for name in report} <= set(written)
    assert not (tmp_path / "1").exists()  # what process 1 wrote


@pytest.mark.slow
def test_processes_with_different_configurations_are_told(folders, tmp_path, capfd):
    running = tiny_job.start(folders / "brought", tmp_path / "run", "sample", processes=2, devices=2, apart=["--config.sampler.steps=3"])
    assert tiny_job.ended(running) == [2, 2]
    assert capfd.readouterr().err.count("the 2 processes were started with 2 configurations; allowed: the same for all") == 2
    assert not (tmp_path / "run" / "config.json").exists()
