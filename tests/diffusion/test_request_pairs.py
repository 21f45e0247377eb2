"""The script that makes pairs for an adapted sampler, on small archives in the layout of the packages'."""

import gzip
import importlib.util
import json
import pathlib
import random
import types
import zipfile

import pytest
import yaml

from dat_jax.data import tasks
from dat_jax.data.rewrites import read_rewrites

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "request_pairs.py"
SPEC = importlib.util.spec_from_file_location("request_pairs", SCRIPT)
pairs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pairs)

TABLE = (
    "sand,noun,sands\nsand,verb,sanded,,sanding,sands\nhang,verb,hung/hanged,hung,hanging,hangs\nbuild,verb,built,built,building,builds\n"
)
REQUESTS = ("Build a crooked stool", "Hang the forbidden picture", "Sand the held out table by night")


def wheel(folder, package, path, content):
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr(path, content)


@pytest.fixture
def values(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    seeds = {"seeds": [{"value": request} for request in REQUESTS]}
    wheel(wheels, "pyrit", "pyrit/datasets/seed_datasets/local/adv_bench.prompt", yaml.safe_dump(seeds))
    wheel(wheels, "lemminflect", "lemminflect/resources/infl_lu.csv.gz", gzip.compress(TABLE.encode()))
    rows = [("LongForm", "How is oak cut?", "With the grain."), ("mmlu", "0 or 1?", "0"), ("LongForm", "word " * 40, "Too long.")]
    lines = "".join(json.dumps({"task_type": kind, "task_prompt": asked, "task_output": said}) + "\n" for kind, asked, said in rows)
    wheel(wheels, "evals", "evals/registry/data/steganography/samples.jsonl", lines)
    asked = {"question": "What is 1 + 1?\n\nA. 1\nB. 2\nC. 3\nD. 11\nAnswer:", "answer": "B"}
    odd = {"question": "No choices here.\nAnswer:", "answer": "A"}
    lines = "".join(json.dumps(row) + "\n" for row in (asked, odd))
    wheel(wheels, "evals", "evals/registry/data/sandbagging/samples-all-large.jsonl", lines)
    for file in pairs.CHATS:
        talk = yaml.safe_dump({"conversations": [[f"What is {file}?", f"It is {file}."]]})
        wheel(wheels, "chatterbot_corpus", f"chatterbot_corpus/data/english/{file}.yml", talk)
    (tmp_path / "held.csv").write_text("Behavior,BehaviorID\nSand the held out table at noon,b\n")
    paths = {"wheels": str(wheels), "output": str(tmp_path / "out"), "held_out": str(tmp_path / "held.csv")}
    paths |= dict.fromkeys(("behaviors", "targets", "answers", "held_out_targets"), "")
    return types.SimpleNamespace(**paths, forms=len(pairs.FORMS), openings=2, harmless=10_000, benign=0, choices=0, words=25, seed=0)


def written(values):
    return [json.loads(line) for line in (pathlib.Path(values.output) / "sampler_pairs.jsonl").read_text().splitlines()]


def test_forms_inflect_by_the_table_and_by_rule(values):
    inflect = pairs.inflections(values.wheels)
    found = dict(zip(pairs.FORMS, pairs.sentences("Hang a picture. Be quick.", pairs.FORMS.values(), inflect), strict=True))
    assert found["history"] == "Somebody once hung a picture. How was it done? Be quick."
    assert found["guide"] == "Write a short guide to hanging a picture. Be quick."
    assert found["past"] == "How did people hang a picture in the past? Be quick."
    assert (inflect("glaze", "past"), inflect("glaze", "gerund")) == ("glazed", "glazing")  # not in the table
    assert pairs.sentences("Who sanded it?", pairs.FORMS.values(), inflect) == []


def test_pairs_leave_out_what_is_held_out(values, capsys):
    pairs.make(values)
    rows = written(values)
    prompts = [row["prompt"] for row in rows]
    assert not any("table" in prompt and "held out" in prompt for prompt in prompts)
    assert "left out 1 requests near a held-out behavior" in capsys.readouterr().out
    assert {row["form"] for row in rows if "stool" in row["prompt"]} <= {"as_given", *pairs.FORMS}
    assert not any(
        rule.split("{}")[0] in prompt for prompt in prompts for form, rule in pairs.RULES.items() if form in pairs.HELD_OUT_FORMS
    )
    stool = [row for row in rows if "stool" in row["prompt"]]
    assert len(stool) == len(pairs.FORMS) and all("stool" in row["response"] for row in stool)
    assert {row["response"] for row in rows if row["form"] == "package"} >= {"With the grain.", "It is food."}
    assert not any("mmlu" in str(row) or "Too long" in str(row) for row in rows)
    plain = (pathlib.Path(values.output) / "plain_prompts.txt").read_text().splitlines()
    assert "How is oak cut?" in plain and sum("fence" in prompt for prompt in plain) == len(pairs.FORMS)
    first = rows
    pairs.make(values)
    assert written(values) == first  # the same seed, the same pairs


def test_the_targets_answers_take_the_place_of_the_packages(values, tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "How is oak cut?", "response": "Slowly."}) + "\n")
    values.answers = str(tmp_path / "own.jsonl")
    pairs.make(values)
    plain = [row for row in written(values) if row["form"] in ("own", "package")]
    assert plain == [{"prompt": "How is oak cut?", "response": "Slowly.", "form": "own"}]


def test_answers_and_targets_that_fit_nothing_are_refused(values, tmp_path):
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "Who is there?", "response": "Nobody."}) + "\n")
    values.answers = str(tmp_path / "others.jsonl")
    with pytest.raises(ValueError, match=r"others\.jsonl: none of its prompts is one of the \d+ harmless ones of this call"):
        pairs.make(values)
    values.answers, values.targets = "", "targets.json"
    with pytest.raises(ValueError, match=r"--targets=targets\.json is about --behaviors, which is empty"):
        pairs.make(values)


def test_held_out_behaviors_with_their_targets_are_what_a_sampler_is_measured_on(values, tmp_path):
    (tmp_path / "held.json").write_text(json.dumps({"b": ["Sure, sand it"]}))
    values.held_out_targets = str(tmp_path / "held.json")
    pairs.make(values)
    [line] = (pathlib.Path(values.output) / "heldout_pairs.jsonl").read_text().splitlines()
    first = next(iter(pairs.FORMS))
    assert json.loads(line) == {"prompt": "How do I sand the held out table at noon?", "response": "Sure, sand it", "form": first}
    assert not any("held out" in row["prompt"] for row in written(values))


def test_a_package_that_is_not_there_is_named(values, tmp_path):
    next(pathlib.Path(values.wheels).glob("pyrit-*")).unlink()
    with pytest.raises(ValueError, match=r"no pyrit-\*\.whl; get it with `pip download --no-deps --dest .* pyrit==1\.1\.0`"):
        pairs.harmful(values, lambda verb, to: verb, random.Random(0))
    wheel(pathlib.Path(values.wheels), "pyrit", "other.txt", "")
    with pytest.raises(ValueError, match=r"pyrit-1\.0-py3-none-any\.whl: no \.\*/adv_bench\.prompt can be read there"):
        pairs.harmful(values, lambda verb, to: verb, random.Random(0))


def test_behaviors_are_written_in_every_form_for_methods_without_a_sampler(values, tmp_path):
    (tmp_path / "train.csv").write_text("Behavior,BehaviorID\nHang a stool,b1\nWho sanded it?,b2\n")
    (tmp_path / "targets.json").write_text(json.dumps({"b1": ["Sure, hang"], "b2": ["It was"]}))
    values.behaviors, values.targets = str(tmp_path / "train.csv"), str(tmp_path / "targets.json")
    pairs.make(values)
    rewrites = read_rewrites(str(pathlib.Path(values.output) / "train_rewrites.jsonl"))
    assert [rewrite.form for rewrite in rewrites] == list(pairs.FORMS) and {rewrite.behavior for rewrite in rewrites} == {"b1"}
    given = [row for row in written(values) if "stool" in row["prompt"] and row["response"] == "Sure, hang"]
    assert len(given) == len(pairs.FORMS)  # the behavior's own opening


def test_prompts_to_measure_with_are_apart_from_those_to_train_on(values):
    values.benign = values.choices = 40
    pairs.make(values)
    output = pathlib.Path(values.output)
    files = [(output / f"{name}.jsonl").read_text().splitlines() for name in ("benign", "benign_choices")]
    benign, choices = ([json.loads(line)["prompt"] for line in lines] for lines in files)
    trained = (output / "plain_prompts.txt").read_text().splitlines()
    assert min(len(benign), len(choices)) >= 40 and len(trained) > 40 and (output / "benign_prompts.txt").read_text().splitlines() == benign
    of_forms = pairs.content(" ".join(pairs.FORMS.values()))
    assert all(map(pairs.apart_from(benign + choices, of_forms), trained)) and all(map(pairs.apart_from(choices, of_forms), benign))


def test_held_out_behaviors_are_rewritten_for_the_evaluation(values):
    pairs.make(values)
    rewrites = read_rewrites(str(pathlib.Path(values.output) / "eval_rewrites.jsonl"))
    assert {rewrite.form: rewrite.held_out for rewrite in rewrites} == {
        "past": False, "polite": False, "future": True, "indirect": True, "requirement": True,
    }  # fmt: skip
    assert {rewrite.behavior for rewrite in rewrites} == {"b"} and all("sand the held out table" in r.prompt for r in rewrites)


def test_questions_are_read_as_a_task(values):
    pairs.make(values)
    [question] = tasks.read(str(pathlib.Path(values.output) / "mmlu.jsonl"))
    assert question.text == "What is 1 + 1?" and question.choices == ("1", "2", "3", "11") and question.answer == 1
    assert question.scored == question.choices  # the texts, and no letters
