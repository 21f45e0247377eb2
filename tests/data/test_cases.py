"""Other tools' test cases and results, from files written by hand after their description."""

import json

import pytest

from dat_jax.data.behaviors import Behavior
from dat_jax.data.cases import Case, read_cases

BEHAVIORS = [
    Behavior("paint_drum", "Paint the drum", ("Sure",), ()),
    Behavior("wash_door", "Wash the door, it is\n\n---\n\nof oak", ("Sure",), ()),
]


def write(tmp_path, content, name="file.json"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    return str(path)


def message(role, content):
    return {"role": role, "content": content}


def step(*messages, completions=("I paint it.",), **more):
    made = {"step": 0, "model_completions": list(completions), "scores": {}, "time_taken": 0.5, "flops": None, "loss": 1.25}
    return made | {"model_input": list(messages) or None, "model_input_tokens": [1, 2], "model_input_embeddings": None} | more


def run_json(*steps, request="Paint the drum"):
    config = {"model": "m", "dataset": "d", "attack": "gcg", "model_params": {}, "dataset_params": {"idx": [3]}, "attack_params": {}}
    prompt = [message("user", request), message("assistant", "Sure, here is how")]
    return {"config": config, "runs": [{"original_prompt": prompt, "steps": list(steps), "total_time": 2.0}]}


def test_test_cases_of_harmbench(tmp_path):
    content = {"paint_drum": ["Paint it !!", "Please paint"], "other": ["x"], "wash_door": [["picture.png", "Wash this"], "Wash"]}
    cases, left_out = read_cases(write(tmp_path, content), BEHAVIORS)
    assert cases == [Case("paint_drum", "Paint it !!"), Case("paint_drum", "Please paint"), Case("wash_door", "Wash")]
    assert left_out == "1 of behaviors that are not the evaluation's; 1 with an image"


def test_completions_and_results_of_harmbench(tmp_path):
    entries = [{"test_case": "Paint it", "generation": text, "unknown": {"key": 1}} for text in ("With a brush.", "No.", "")]
    cases, left_out = read_cases(write(tmp_path, {"paint_drum": entries}), BEHAVIORS)
    assert cases == [Case("paint_drum", "Paint it", completions=(text,)) for text in ("With a brush.", "No.", "")] and left_out == ""
    results = [entry | {"label": label, "advbench_label": 1} for entry, label in zip(entries, (1, 0, -1))]
    assert [case.label for case in read_cases(write(tmp_path, {"paint_drum": results}), BEHAVIORS)[0]] == [1, 0, -1]


def test_a_run_of_adversariallm(tmp_path):
    scores = {"strong_reject": {"p_harmful": [0.75, None], "refusal_score": [0, 1]}, "xstest": {"category": ["a", "b"]}}
    content = run_json(
        step(message("user", "Paint it !!"), message("assistant", ""), completions=("a", "b"), scores=scores),
        step(message("user", "Paint it"), message("assistant", "Sure, take"), completions=("Sure, take a brush",), unknown=1),
        step(message("user", "Paint"), completions=()),
        step(),  # of an attack on the embeddings
        step(message("user", "soft"), message("assistant", ""), model_input_embeddings="0.safetensors"),
        step(message("system", "Be kind."), message("user", "Paint")),
        step(message("user", "Hello"), message("assistant", "Hello."), message("user", "Paint")),
    )
    content["runs"][0]["resume_metadata"] = {"any": "thing"}
    cases, left_out = read_cases(write(tmp_path, content, "run.json"), BEHAVIORS)
    assert cases == [
        Case("paint_drum", "Paint it !!", "", ("a", "b"), scores={"strong_reject": (0.75, None)}),
        Case("paint_drum", "Paint it", "Sure, take", ("Sure, take a brush",)),
        Case("paint_drum", "Paint"),
    ]
    assert left_out == "2 without a text, as perturbed embeddings are; 2 with a system message or several turns"


def test_a_folder_of_runs(tmp_path):
    write(tmp_path, run_json(step(message("user", "one"))), "2026-01-02/03-04-05/0/run.json")
    write(tmp_path, run_json(step(message("user", "two")), request=" Wash the door, it is --- of oak "), "2026-01-02/03-04-05/1/run.json")
    write(tmp_path, run_json(step(message("user", "x")), request="Something else"), "2026-01-03/03-04-05/0/run.json")
    write(tmp_path, "not json", "2026-01-03/03-04-05/0/notes.json")
    cases, left_out = read_cases(str(tmp_path), BEHAVIORS)
    assert [(case.behavior, case.prompt) for case in cases] == [("paint_drum", "one"), ("wash_door", "two")]
    assert left_out == "1 of behaviors that are not the evaluation's"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"file\.json, line 1: not JSON"),
        ("[]", r"file\.json: found list; allowed: HarmBench's .* or AdversariaLLM's run\.json"),
        ({}, r"file\.json: found an object with ; allowed"),
        ({"paint_drum": "Paint it"}, r"file\.json: found an object with 'paint_drum'; allowed: HarmBench's \{BehaviorID: \[text"),
        ({"config": {}, "runs": [{"steps": []}], "time": 1}, r"file\.json: found an object with 'config', 'runs', 'time'; allowed"),
        ({"paint_drum": [7]}, r"file\.json, key 'paint_drum', entry 0: found 7; allowed: a text, or an object test_case, generation"),
        ({"paint_drum": ["ok", " "]}, r"key 'paint_drum', entry 1: test_case is ' '; allowed: a non-empty text"),
        ({"paint_drum": [{"testcase": "a", "generation": "b"}]}, r"entry 0: no key 'test_case'; found: testcase, generation; did you mean"),
        ({"paint_drum": [{"test_case": "a", "generation": None}]}, r"entry 0: generation is None; allowed: a text"),
        ({"paint_drum": [{"test_case": "a", "generation": "b", "label": 2}]}, r"entry 0: label is 2; allowed: 1, 0 or -1"),
        ({"paint_drum": [{"test_case": "a", "generation": "b", "label": "yes"}]}, r"entry 0: label is 'yes'; allowed: 1, 0 or -1"),
        ({"paint_drum": [{"test_case": "a", "generation": "b", "label": True}]}, r"entry 0: label is True; allowed: 1, 0 or -1"),
        (
            {"other": ["a"], "more": []},
            r"none of its 2 behaviors is the evaluation's; found: 'other', 'more'; allowed: .* e\.g\. 'paint_drum'",
        ),
        ({"paint_drum": [["picture.png", "a"]]}, r"file\.json: nothing in it can be sent as text: 1 with an image; allowed"),
        (run_json(step(), request="Paint a wall"), r"none of its 1 behaviors is .*'Paint a wall'.* 'Paint the drum'"),
        (run_json(step()), r"file\.json: nothing in it can be sent as text: 1 without a text, as perturbed embeddings are"),
        (run_json(step(message("user", ""))), r"file\.json, run 0, step 0: model_input is ''; allowed: a non-empty text"),
        (run_json(step("Paint")), r"run 0, step 0: model_input is \['Paint'\]; allowed: a list of objects with the texts role and content"),
        (run_json(step(message("user", "a"), completions=(1,))), r"step 0: model_completions is \[1\]; allowed: a list of texts"),
        (
            run_json(step(message("user", "a"), scores={"j": {"p_harmful": [1, 1]}})),
            r"step 0: p_harmful of j is \[1, 1\]; allowed: .* of 1 comp",
        ),
        (run_json(step(message("user", "a"), scores={"j": 1})), r"step 0: scores is \{'j': 1\}; allowed: an object"),
        ({"runs": [{"original_prompt": "Paint", "steps": []}]}, r"run 0: original_prompt is 'Paint'; allowed: a list of objects"),
        ({"runs": [{"original_prompt": [], "steps": [1]}]}, r"run 0: steps is \[1\]; allowed: a list of objects"),
    ],
)
def test_a_fault_names_the_file_what_was_found_and_what_is_allowed(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_cases(write(tmp_path, content), BEHAVIORS)


def test_what_is_no_file_and_a_folder_without_runs(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_cases(str(tmp_path / "nothing.json"), BEHAVIORS)
    with pytest.raises(ValueError, match=r"no run\.json in that folder; allowed: a test_cases\.json"):
        read_cases(str(tmp_path), BEHAVIORS)
    write(tmp_path, {"paint_drum": ["a"]}, "run.json")
    with pytest.raises(ValueError, match=r"run\.json: found an object with 'paint_drum'"):
        read_cases(str(tmp_path), BEHAVIORS)
