"""Sampling and evaluation on several hosts, imitated by processes on loopback: what two of them leave is what one leaves."""

import json

import pytest

ATTACKS = "--config.evaluation.attacks=('direct','best_of_n','embedding')"
SMALL = ("--config.training.methods=('undefended','dat')", "--config.training.watch_every=0", ATTACKS)


@pytest.fixture(scope="module")
def folders(tiny_job, tmp_path_factory):
    """What was brought, and the workdirs of one process with two devices and of two processes with one each."""
    root = tmp_path_factory.mktemp("stations")
    tiny_job.bring(root / "brought")
    for processes in (1, 2):
        running = tiny_job.start(root / "brought", root / f"by_{processes}", "all", *SMALL, processes=processes, devices=2)
        assert tiny_job.ended(running) == [0] * processes
    return root


def results(workdir):
    """Every prompt, answer and verdict of a workdir, and the table of the report."""
    paths = [path for name in ("prompts", "answers", "verdicts") for path in workdir.glob(f"seed_0/{name}/**/*.jsonl")]
    found = {str(path.relative_to(workdir)): path.read_text() for path in paths}
    table = json.loads((workdir / "results.json").read_text())
    return found | {"rows": table["rows"], "utility": table["utility"]}


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(folders):
    one, two = results(folders / "by_1"), results(folders / "by_2")
    assert one.keys() == two.keys()
    assert {
        "seed_0/prompts/prompts.jsonl",
        "seed_0/answers/dat/embedding.jsonl",
        "seed_0/answers/dat/utility/benign.jsonl",
        "seed_0/verdicts/refusal_prefix/dat/utility/benign.jsonl",
    } <= one.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_two_processes_go_on_with_what_is_half_done_and_the_first_alone_writes(tiny_job, folders, tmp_path):
    workdir, before = folders / "by_2", results(folders / "by_2")
    gone = ["prompts/prompts.jsonl", "prompts/cost.json", "verdicts/refusal_prefix/dat/embedding.jsonl"]
    gone += ["verdicts/refusal_prefix/dat/embedding.json"]
    gone += [f"answers/{name}{end}" for name in ("dat/direct", "undefended/utility/benign") for end in (".json", ".jsonl")]
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
def test_processes_with_different_configurations_are_told(tiny_job, folders, tmp_path, capfd):
    running = tiny_job.start(folders / "brought", tmp_path / "run", "sample", processes=2, devices=2, apart=["--config.sampler.steps=3"])
    assert tiny_job.ended(running) == [2, 2]
    assert capfd.readouterr().err.count("the 2 processes were started with 2 configurations; allowed: the same for all") == 2
    assert not (tmp_path / "run" / "config.json").exists()
