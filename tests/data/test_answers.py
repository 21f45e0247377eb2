"""Files of answers: what is read back of them, whole, half written, or with less asked for."""

from dat_jax.data import answers as answers_lib
from dat_jax.data.answers import Answers, answer_checksum, checksum, file_name


def line(id, response="r", **more):
    return {"method": "cat", "attack": "direct", "behavior": id, "prompt": f"p {id}", "prefill": "", "response": response} | more


def write(folder, lines, name="direct", **about):
    done = dict.fromkeys((answers_lib.item_of(line) for line in lines), "x")
    answers_lib.write(Answers(folder / name, {"made_with": {"a": 1}, "done": done} | about, lines))


def test_what_was_written_comes_back(tmp_path):
    lines = [line("1", "wie geht\u2028das?"), line("1", "more"), line("2")]
    write(tmp_path, lines)
    found = answers_lib.read(tmp_path / "direct")
    assert (found.lines, found.asked, found.done) == (lines, lines, {"1": "x", "2": "x"})
    assert not list(tmp_path.glob("*.partial"))
    none = answers_lib.read(tmp_path / "nothing")
    assert (none.about, none.lines, none.done, none.asked) == ({}, [], {}, [])


def test_lines_of_what_is_not_done_are_left_out_and_what_is_not_asked_for_is_kept(tmp_path):
    lines = [line("1"), line("2"), line("3")]
    write(tmp_path, lines, done={"1": "x", "3": "y"}, asked=["3", "9"])
    found = answers_lib.read(tmp_path / "direct")
    assert (found.lines, found.asked) == ([lines[0], lines[2]], [lines[2]])


def test_behaviors_without_any_attempt_are_done_all_the_same(tmp_path):
    write(tmp_path, [], done={"1": "x"})
    found = answers_lib.read(tmp_path / "direct")
    assert (found.done, found.lines) == ({"1": "x"}, [])


def test_nothing_is_done_where_one_of_the_two_files_is_gone(tmp_path):
    for suffix in (".json", ".jsonl"):
        write(tmp_path, [line("1")])
        (tmp_path / f"direct{suffix}").unlink()
        assert answers_lib.read(tmp_path / "direct").done == {}


def test_stems_are_the_attacks_and_then_the_utility_sets(tmp_path):
    for name in ("rewrite-past", "direct", "utility/benign"):
        write(tmp_path, [line("1")], name)
    (tmp_path / "embedding.progress.npz").write_bytes(b"")
    assert answers_lib.stems(tmp_path) == [tmp_path / name for name in ("direct", "rewrite-past", "utility/benign")]
    assert file_name("embedding+rewrite:past") == "embedding+rewrite-past"


def test_a_checksum_is_of_all_that_a_verdict_is_about():
    first = answer_checksum(line("1"))
    others = [line("2"), line("1", "s"), line("1", prompt="q"), line("1", prefill="Sure")]
    assert first == answer_checksum(line("1", method="dat", attack="rewrite"))  # the same answer, whoever gave it
    assert len({first, *map(answer_checksum, others)}) == 5
    utility = {"id": "1", "prompt": "p 1", "response": "r"}
    assert answer_checksum(utility) == first
    assert checksum("é", ["a"]) == checksum("é", ("a",)) != checksum("é", ["b"])
