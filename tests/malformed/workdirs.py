"""Work directories: what a call finds there that an earlier one wrote, or somebody edited."""

import json
import pathlib

from etils import epath

from dat_jax.data import answers, manifest, provenance
from dat_jax.stations import workdir
from malformed import Row, configured, file, put

CLAIM, FILES, ANSWERS = "A work directory", "Files with checksums", "Answers"


def claimed(what, message, damage, config=None):
    """A claimed folder that is damaged, or used with another configuration."""

    def run(folder: pathlib.Path) -> None:
        (folder / "b.csv").write_text("Behavior,BehaviorID\na,b\n")
        first = put(configured(), "data.behaviors", str(folder / "b.csv"))
        workdir.claim(epath.Path(folder / "run"), first)
        second = put(configured(), "data.behaviors", str(folder / "b.csv"))
        damage(folder)
        for key, value in (config or {}).items():
            put(second, key, value)
        workdir.check_claim(epath.Path(folder / "run"), second)

    return Row(CLAIM, what, run, message)


def remove(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def edit(name, old, new):
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return damage


def nothing(folder):
    """No damage."""


def of_manifest(content, message):
    return file(FILES, manifest.load, "a.json", content, message)


def answered(what, message, damage):
    """A file of answers that is damaged."""

    def run(folder: pathlib.Path) -> None:
        line = {"behavior": "b", "prompt": "p", "response": "r"}
        answers.write(answers.Answers(epath.Path(folder / "direct"), {"done": {"b": "1"}}, [line]))
        damage(folder)
        answers.read_all(epath.Path(folder))

    return Row(ANSWERS, what, run, message)


def compared(found, wanted, message):
    """A folder that was made with other settings."""
    run = lambda folder: provenance.compare(folder / "made_with.json", found, wanted, "delete it", name="config.")  # noqa: E731
    return Row(FILES, f"made_with.json: {json.dumps(found)}, and now {json.dumps(wanted)}", run, message)


ROWS = [
    claimed("config.json is []", 'FOLDER/run/config.json holds a JSON list; allowed: the object that was written there; put it back as it was, or use another --workdir', write("run/config.json", "[]")),
    claimed("config.json is {", 'FOLDER/run/config.json, line 1: not JSON: Expecting property name enclosed in double quotes', write("run/config.json", "{")),
    claimed("config.json is empty", 'FOLDER/run/config.json: the file is empty', write("run/config.json", "")),
    claimed("config.json was edited", 'FOLDER/run/config.json was damaged or edited: its content has the checksum ..., and ... was written; put it back as it was, or use another --workdir', edit("run/config.json", '"training.steps": 760', '"training.steps": 7')),
    claimed("config.json is gone, checkpoints are there", 'FOLDER/run/config.json is gone: nobody knows what was made there with which settings; put it back as it was, or use another --workdir', lambda f: (remove("run/config.json")(f), (f / "run/seed_0/cat/checkpoints").mkdir(parents=True))),
    claimed("inputs.json is gone", 'FOLDER/run/inputs.json is gone: nobody knows which files were trained on; put it back as it was, or use another --workdir', remove("run/inputs.json")),
    claimed("inputs.json was edited", 'FOLDER/run/inputs.json was damaged or edited: its content has the checksum ..., and ... was written; put it back as it was, or use another --workdir', edit("run/inputs.json", "checksum", "checksun")),
    claimed("the behaviors were edited", 'config.data.behaviors: FOLDER/b.csv is not what FOLDER/run was begun with: its checksum was ..., now it is ...; put the file back as it was, or use another --workdir', edit("b.csv", "a,b", "c,b")),
    claimed("another number of steps", 'FOLDER/run was made with config.training.steps = 760, now it is 7; use another --workdir', nothing, {"training.steps": 7}),
    claimed("another sampler", 'FOLDER/run was made with config.sampler.samples = 64, now it is 7; use another --workdir', nothing, {"sampler.samples": 7}),
    claimed("another system prompt", "FOLDER/run was made with config.data.system = None, now it is 'Be kind.'; use another --workdir", nothing, {"data.system": "Be kind."}),
    of_manifest(None, 'FOLDER/a.json: no such file'),
    of_manifest("", 'FOLDER/a.json: the file is empty'),
    of_manifest("[]", 'FOLDER/a.json holds a JSON list; allowed: the object that was written there; put it back as it was, or delete it to have it made again'),
    of_manifest('"text"', 'FOLDER/a.json holds a JSON str; allowed: the object that was written there; put it back as it was, or delete it to have it made again'),
    of_manifest('{"a": 1, "manifest": {"format": 1, "checksum": "0"}}', 'FOLDER/a.json was damaged or edited: its content has the checksum fa257740fa20c571f81da874aa0e9515, and 0 was written; put it back as it was, or delete it to have it made again'),
    of_manifest('{"a": 1, "manifest": {"format": 99, "checksum": "0"}}', 'FOLDER/a.json has format 99, of a later version; allowed: 1; update this package'),
    of_manifest('{"a": 1, "manifest": []}', 'FOLDER/a.json was damaged or edited: its content has the checksum 868a28d479b4c7922e0978798d1a74a6, and None was written; put it back as it was, or delete it to have it made again'),
    of_manifest('{"a": 1, "manifest": null}', 'FOLDER/a.json was damaged or edited: its content has the checksum 94c01dfede672be821a8b2ff5ff33ae5, and None was written; put it back as it was, or delete it to have it made again'),
    of_manifest('{"a": 1, "a": 2}', "FOLDER/a.json: the key 'a' stands in one object more than once"),
    compared({"steps": 3}, {"steps": 4}, 'FOLDER/made_with.json was made with config.steps = 3, now it is 4; delete it'),
    compared({}, {"steps": 4}, 'FOLDER/made_with.json was made with config.steps = something that is not recorded, now it is 4; delete it'),
    compared({"a": {"b": 1}}, {"a": {"b": 2}}, 'FOLDER/made_with.json was made with config.a.b = 1, now it is 2; delete it'),
    answered("the lines are gone", 'FOLDER/direct.jsonl is gone, and direct.json is there: answers were lost; run --mode=evaluate to answer again, or delete both', remove("direct.jsonl")),
    answered("the .json is gone", 'FOLDER/direct.json is gone, and direct.jsonl is there: answers were lost; run --mode=evaluate to answer again, or delete both', remove("direct.json")),
    answered("a response was edited", 'FOLDER/direct.jsonl was cut, damaged or edited: it has 1 lines, 50 bytes with the checksum 7b5ff521d99c9f9268725cb7e03e88bb; direct.json beside it says that 1 lines, 50 bytes with the checksum 6fd32912fb56cfcc30b0804585cec9f2 were written; put it back as it was, or delete both to answer again', edit("direct.jsonl", '"r"', '"s"')),
    answered("the last line is gone", 'FOLDER/direct.jsonl was cut, damaged or edited: it has 0 lines, 0 bytes with the checksum cae66941d9efbd404e4d88758ea67670; direct.json beside it says that 1 lines, 50 bytes with the checksum 6fd32912fb56cfcc30b0804585cec9f2 were written; put it back as it was, or delete both to answer again', write("direct.jsonl", "")),
    answered("done was edited", 'FOLDER/direct.json was damaged or edited: its content has the checksum ..., and ... was written; put it back as it was, or delete both to answer again', edit("direct.json", '"b": "1"', '"b": "2"')),
    answered("no done in the .json", "FOLDER/direct.json, line 1: no key 'done'; found: ", write("direct.json", "{}")),
    answered("done is a list", 'FOLDER/direct.json: done is 3; allowed: an object of ids and checksums; put it back as it was, or delete both to answer again', write("direct.json", '{"done": 3}')),
    answered("a line without its behavior", "FOLDER/direct.jsonl, line 1: no key 'id'; found: prompt", lambda f: (write("direct.json", '{"done": {"b": "1"}}')(f), write("direct.jsonl", '{"prompt": "p"}\n')(f))),
]
