"""Files of behaviors, targets, refusals and rewrites."""

from dat_jax.data.behaviors import load_behaviors
from dat_jax.data.cases import read_cases
from dat_jax.data.rewrites import read_rewrites
from malformed import file

BEHAVIORS, TARGETS, REFUSALS, REWRITES, CASES = "Behaviors", "Targets", "Refusals", "Rewrites", "Test cases of other tools"
GOOD = "Behavior,BehaviorID,ContextString\nPaint the drum,paint_drum,\nWash it,wash,Some context\n"
HEAD = "Behavior,BehaviorID\n"


def targets(path: str) -> object:
    """The targets of GOOD."""
    return load_behaviors(path.replace("t.json", "b.csv"), path)


def refusals(path: str) -> object:
    """The refusals of GOOD."""
    return load_behaviors(path.replace("r.csv", "b.csv"), "", path)


def cases(path: str) -> object:
    """The test cases of GOOD."""
    folder = path.rpartition("/")[0]
    return read_cases(path, load_behaviors(f"{folder}/b.csv"))


def of_behaviors(content, message, what=""):
    return file(BEHAVIORS, load_behaviors, "b.csv", content, message, what)


def of_targets(content, message, what=""):
    return file(TARGETS, targets, "t.json", content, message, what, {"b.csv": GOOD})


def of_refusals(content, message, what=""):
    return file(REFUSALS, refusals, "r.csv", content, message, what, {"b.csv": GOOD})


def of_rewrites(content, message, what=""):
    return file(REWRITES, read_rewrites, "r.jsonl", content, message, what)


def of_cases(content, message, what=""):
    return file(CASES, cases, "c.json", content, message, what, {"b.csv": GOOD})


def of_step(message, original="Paint the drum", **step):
    """AdversariaLLM's run.json with one step."""
    asked = {"model_input": [{"role": "user", "content": "p"}], "model_completions": ["a"], "scores": {}}
    run = {"original_prompt": [{"role": "user", "content": original}], "steps": [asked | step]}
    what = f"run.json with a step of {step}" if step else f"run.json of {original!r}"
    return of_cases({"config": {}, "runs": [run]}, message, what)


ROWS = [
    of_behaviors(None, 'FOLDER/b.csv: no such file'),
    of_behaviors("", 'FOLDER/b.csv: the file is empty'),
    of_behaviors(" \n\n", 'FOLDER/b.csv: the file is empty'),
    of_behaviors(HEAD, 'FOLDER/b.csv: a header and no rows'),
    of_behaviors("Behaviour,BehaviorID\na,b\n", "FOLDER/b.csv, line 1: the columns are Behaviour, BehaviorID (did you mean to rename 'Behaviour' to 'Behavior'?); allowed: HarmBench: Behavior, BehaviorID; JailbreakBench: Goal, Target, Behavior; AdvBench: goal, target; StrongREJECT: forbidden_prompt, category; circuit breakers: prompt, output, llama3_output; XSTest: prompt, type, label; your own: id, prompt"),
    of_behaviors("goal,targets\na,b\n", "FOLDER/b.csv, line 1: the columns are goal, targets (did you mean to rename 'targets' to 'target'?); allowed: HarmBench: Behavior, BehaviorID; JailbreakBench: Goal, Target, Behavior; AdvBench: goal, target; StrongREJECT: forbidden_prompt, category; circuit breakers: prompt, output, llama3_output; XSTest: prompt, type, label; your own: id, prompt"),
    of_behaviors("question,answer\na,b\n", 'FOLDER/b.csv, line 1: the columns are question, answer; allowed: HarmBench: Behavior, BehaviorID; JailbreakBench: Goal, Target, Behavior; AdvBench: goal, target; StrongREJECT: forbidden_prompt, category; circuit breakers: prompt, output, llama3_output; XSTest: prompt, type, label; your own: id, prompt'),
    of_behaviors("Behavior,Behavior,BehaviorID\na,b,c\n", "FOLDER/b.csv, line 1: the column 'Behavior' stands there more than once; allowed: each once"),
    of_behaviors('"Behavior,BehaviorID\na,b\n', 'FOLDER/b.csv, line 1: unexpected end of data; allowed: the names of columns'),
    of_behaviors("Behavior;BehaviorID\na;b\n", 'FOLDER/b.csv, line 1: the columns are Behavior;BehaviorID; allowed: HarmBench: Behavior, BehaviorID; JailbreakBench: Goal, Target, Behavior; AdvBench: goal, target; StrongREJECT: forbidden_prompt, category; circuit breakers: prompt, output, llama3_output; XSTest: prompt, type, label; your own: id, prompt'),
    of_behaviors(HEAD + ",x\n", "FOLDER/b.csv, line 2: Behavior is ''; allowed: a non-empty text"),
    of_behaviors(HEAD + "x,\n", "FOLDER/b.csv, line 2: BehaviorID is ''; allowed: a non-empty text"),
    of_behaviors(HEAD + "  ,x\n", "FOLDER/b.csv, line 2: Behavior is '  '; allowed: a non-empty text"),
    of_behaviors(HEAD + "x\n", "FOLDER/b.csv, line 2: 1 fields; allowed: the header's 2"),
    of_behaviors(HEAD + "a,b,c\n", "FOLDER/b.csv, line 2: 3 fields; allowed: the header's 2"),
    of_behaviors(HEAD + "a,b\nc,b\n", "FOLDER/b.csv, line 3: the id 'b' stands on FOLDER/b.csv, line 2 already; allowed: each once"),
    of_behaviors(HEAD + '"a,b\n', 'FOLDER/b.csv, line 1: unexpected end of data'),
    of_behaviors(HEAD + '"a"x,b\n', 'FOLDER/b.csv, line 1: \',\' expected after \'"\''),
    of_behaviors(HEAD + "a\0,b\n", "FOLDER/b.csv, line 2: Behavior holds '\\x00'; allowed: a text without it"),
    of_behaviors(HEAD + "a,b\0\n", "FOLDER/b.csv, line 2: BehaviorID holds '\\x00'; allowed: a text without it"),
    of_behaviors(b"Behavior,BehaviorID\nok,a\nbad \xff,b\n", 'FOLDER/b.csv, line 3: byte 0xff is not UTF-8; allowed: UTF-8 text'),
    of_behaviors("Behavior,BehaviorID\nä,b\n".encode("latin-1"), 'FOLDER/b.csv, line 2: byte 0xe4 is not UTF-8; allowed: UTF-8 text'),
    of_behaviors("Behavior,BehaviorID\na,b\n".encode("utf-16"), 'FOLDER/b.csv, line 1: byte 0xff is not UTF-8; allowed: UTF-8 text'),
    of_behaviors(HEAD + "a" * 200_000 + ",b\n", 'FOLDER/b.csv, line 1: field larger than field limit (131072)'),
    of_behaviors("goal,target\n ,x\n", "FOLDER/b.csv, line 2: goal is ' '; allowed: a non-empty text"),
    of_behaviors("goal,target\nx,\n", "FOLDER/b.csv, line 2: target is ''; allowed: a non-empty text"),
    of_behaviors("Goal,Target,Behavior\nx,,b\n", "FOLDER/b.csv, line 2: Target is ''; allowed: a non-empty text"),
    of_behaviors("Goal,Target,Behavior\nx,y,\n", "FOLDER/b.csv, line 2: Behavior is ''; allowed: a non-empty text"),
    of_behaviors("category,forbidden_prompt\nc,\n", "FOLDER/b.csv, line 2: forbidden_prompt is ''; allowed: a non-empty text"),
    of_behaviors('[{"Behavior": "a", "BehaviorID": "b"}]', 'FOLDER/b.csv: a header and no rows'),
    of_behaviors(b"PK\x03\x04 a workbook", 'FOLDER/b.csv: a header and no rows'),
    of_targets(None, 'FOLDER/t.json: no such file'),
    of_targets("", 'FOLDER/t.json: the file is empty'),
    of_targets("{", 'FOLDER/t.json, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_targets('{"paint_drum":\n}', 'FOLDER/t.json, line 2: not JSON: Expecting value'),
    of_targets("[]", 'FOLDER/t.json: found a list; allowed: an object {BehaviorID: text or list of texts}'),
    of_targets("3", 'FOLDER/t.json: found a int; allowed: an object {BehaviorID: text or list of texts}'),
    of_targets("null", 'FOLDER/t.json: found a NoneType; allowed: an object {BehaviorID: text or list of texts}'),
    of_targets({"paint_drum": "x"}, "FOLDER/t.json: no key 'wash', the id of FOLDER/b.csv, line 3"),
    of_targets({"paint_drum": "x", "wash": [""]}, "FOLDER/t.json, key 'wash': no target with text; allowed: at least one"),
    of_targets({"paint_drum": "x", "wash": []}, "FOLDER/t.json, key 'wash': no target with text; allowed: at least one"),
    of_targets({"paint_drum": 3}, "FOLDER/t.json, key 'paint_drum': found 3; allowed: a text or a list of texts"),
    of_targets({"paint_drum": ["x", None]}, "FOLDER/t.json, key 'paint_drum': found ['x', None]; allowed: a text or a list of texts"),
    of_targets({"paint_drum": {"text": "x"}}, "FOLDER/t.json, key 'paint_drum': found {'text': 'x'}; allowed: a text or a list of texts"),
    of_targets('{"paint_drum": "x", "paint_drum": "y"}', "FOLDER/t.json: the key 'paint_drum' stands in one object more than once"),
    of_targets("[" * 100_000, 'FOLDER/t.json: lists or objects inside each other too deeply'),
    of_targets('{"paint_drum": ' + "9" * 5000 + "}", 'FOLDER/t.json: a number has more digits than are read'),
    of_targets('{"paint_drum": "\\ud800", "wash": "x"}', "FOLDER/t.json, key 'paint_drum': a target holds '\\ud800'; allowed: a text without it"),
    of_targets('{"paint_drum": "x\\u0000", "wash": "x"}', "FOLDER/t.json, key 'paint_drum': a target holds '\\x00'; allowed: a text without it"),
    of_targets(b'{"paint_drum": "\xe4"}', 'FOLDER/t.json, line 1: byte 0xe4 is not UTF-8; allowed: UTF-8 text'),
    of_refusals(None, 'FOLDER/r.csv: no such file; did you mean b.csv?'),
    of_refusals("Behavior,Refusal\nPaint the drum,No.\n", "FOLDER/r.csv, line 1: no column 'Safe_Response'; found: Behavior, Refusal"),
    of_refusals("Behavior,Safe_Response\nPaint the drum,No.\n", "FOLDER/r.csv: no row whose Behavior is that of FOLDER/b.csv, line 3 ('Wash it')"),
    of_refusals("Behavior,Safe_Response\nPaint the drum,\n", "FOLDER/r.csv, line 2: Safe_Response is ''; allowed: a non-empty text"),
    of_refusals("Behavior,Safe_Response\nPaint the drum,No.\nWash it,\0\n", "FOLDER/r.csv, line 3: Safe_Response holds '\\x00'; allowed: a text without it"),
    of_rewrites(None, 'FOLDER/r.jsonl: no such file'),
    of_rewrites("", 'FOLDER/r.jsonl: the file is empty'),
    of_rewrites("{]\n", 'FOLDER/r.jsonl, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_rewrites("[1]\n", 'FOLDER/r.jsonl, line 1: found list; allowed: an object per line'),
    of_rewrites('"text"\n', 'FOLDER/r.jsonl, line 1: found str; allowed: an object per line'),
    of_rewrites({"id": "a", "rewrites": "past", "prompt": "p"}, "FOLDER/r.jsonl, line 1: no key 'rewrite'; found: id, rewrites, prompt; did you mean to rename 'rewrites'?"),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": " "}, "FOLDER/r.jsonl, line 1: prompt is ' '; allowed: a non-empty text"),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": None}, 'FOLDER/r.jsonl, line 1: prompt is None; allowed: a non-empty text'),
    of_rewrites({"id": 3, "rewrite": "past", "prompt": "p"}, 'FOLDER/r.jsonl, line 1: id is 3; allowed: a non-empty text'),
    of_rewrites({"id": "a", "rewrite": "a/b", "prompt": "p"}, 'FOLDER/r.jsonl, line 1: rewrite is \'a/b\'; allowed: a name of letters, digits, "_", "." and "-"'),
    of_rewrites({"id": "a", "rewrite": "..", "prompt": "p"}, 'FOLDER/r.jsonl, line 1: rewrite is \'..\'; allowed: a name of letters, digits, "_", "." and "-"'),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": "p\0"}, "FOLDER/r.jsonl, line 1: prompt holds '\\x00'; allowed: a text without it"),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": "\ud83d"}, "FOLDER/r.jsonl, line 1: prompt holds '\\ud83d'; allowed: a text without it"),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": "p", "held_out": "yes"}, "FOLDER/r.jsonl, line 1: held_out is 'yes'; allowed: true or false"),
    of_rewrites({"id": "a", "rewrite": "past", "prompt": "p", "held_out": None}, 'FOLDER/r.jsonl, line 1: held_out is None; allowed: true or false'),
    of_rewrites('{"id": "a", "id": "b", "rewrite": "past", "prompt": "p"}', "FOLDER/r.jsonl, line 1: the key 'id' stands in one object more than once"),
    of_rewrites('{"id": "a", "rewrite": "past", "prompt": "p"}\n{"id": "a", "rewrite": "Past", "prompt": "q"}\n', "FOLDER/r.jsonl, line 2: rewrite is 'Past', and 'past' on line 1; allowed: one spelling of a form"),
    of_rewrites('{"id": "a", "rewrite": "past", "prompt": "p"} {"id": "b"}', 'FOLDER/r.jsonl, line 1: not JSON: Extra data'),
    of_rewrites('{"id": "a", "rewrite": "past", "prompt": ' + "[" * 100_000, 'FOLDER/r.jsonl, line 1: lists or objects inside each other too deeply'),
    of_cases(None, 'FOLDER/c.json: no such file'),
    of_cases("{", 'FOLDER/c.json, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_cases([], "FOLDER/c.json: found list; allowed: HarmBench's {BehaviorID: [text, ...]} or {BehaviorID: [{test_case, generation}, ...]}, or AdversariaLLM's run.json {config, runs: [{original_prompt, steps}, ...]}"),
    of_cases({}, "FOLDER/c.json: found an object with ; allowed: HarmBench's {BehaviorID: [text, ...]} or {BehaviorID: [{test_case, generation}, ...]}, or AdversariaLLM's run.json {config, runs: [{original_prompt, steps}, ...]}"),
    of_cases({"paint_drum": "Paint it"}, "FOLDER/c.json: found an object with 'paint_drum'; allowed: HarmBench's {BehaviorID: [text, ...]} or {BehaviorID: [{test_case, generation}, ...]}, or AdversariaLLM's run.json {config, runs: [{original_prompt, steps}, ...]}"),
    of_cases({"config": {}, "runs": [{"steps": []}], "time": 1}, "FOLDER/c.json: found an object with 'config', 'runs', 'time'; allowed: HarmBench's {BehaviorID: [text, ...]} or {BehaviorID: [{test_case, generation}, ...]}, or AdversariaLLM's run.json {config, runs: [{original_prompt, steps}, ...]}"),
    of_cases({"paint_drum": [7]}, "FOLDER/c.json, key 'paint_drum', entry 0: found 7; allowed: a text, or an object test_case, generation"),
    of_cases({"paint_drum": ["ok", " "]}, "FOLDER/c.json, key 'paint_drum', entry 1: test_case is ' '; allowed: a non-empty text"),
    of_cases({"paint_drum": ["a\0"]}, "FOLDER/c.json, key 'paint_drum', entry 0: test_case holds '\\x00'; allowed: a text without it"),
    of_cases({"paint_drum": [{"testcase": "a", "generation": "b"}]}, "FOLDER/c.json, key 'paint_drum', entry 0: no key 'test_case'; found: testcase, generation; did you mean to rename 'testcase'?"),
    of_cases({"paint_drum": [{"test_case": "a", "generation": None}]}, "FOLDER/c.json, key 'paint_drum', entry 0: generation is None; allowed: a text"),
    of_cases({"paint_drum": [{"test_case": "a", "generation": "b", "label": 2}]}, "FOLDER/c.json, key 'paint_drum', entry 0: label is 2; allowed: 1, 0 or -1"),
    of_cases({"paint_drum": [{"test_case": "a", "generation": "b", "label": "yes"}]}, "FOLDER/c.json, key 'paint_drum', entry 0: label is 'yes'; allowed: 1, 0 or -1"),
    of_cases({"paint_drum": [["picture.png", "a"]]}, "FOLDER/c.json: nothing in it can be sent as text: 1 with an image; allowed: texts of the evaluation's behaviors"),
    of_cases({"other": ["a"]}, "FOLDER/c.json: none of its 1 behaviors is the evaluation's; found: 'other'; allowed: its ids or texts, e.g. 'paint_drum' or 'Paint the drum'"),
    of_cases({"runs": [{"original_prompt": "Paint", "steps": []}]}, "FOLDER/c.json, run 0: original_prompt is 'Paint'; allowed: a list of objects with the texts role and content"),
    of_cases({"runs": [{"original_prompt": [], "steps": [1]}]}, 'FOLDER/c.json, run 0: steps is [1]; allowed: a list of objects'),
    of_step("FOLDER/c.json: none of its 1 behaviors is the evaluation's; found: 'Paint a wall'; allowed: its ids or texts, e.g. 'paint_drum' or 'Paint the drum'", original="Paint a wall"),
    of_step("FOLDER/c.json, run 0, step 0: model_input is 'Paint'; allowed: a list of objects with the texts role and content", model_input="Paint"),
    of_step("FOLDER/c.json, run 0, step 0: model_input is ''; allowed: a non-empty text", model_input=[{"role": "user", "content": ""}]),
    of_step('FOLDER/c.json, run 0, step 0: model_completions is [1]; allowed: a list of texts', model_completions=[1]),
    of_step("FOLDER/c.json, run 0, step 0: scores is {'j': 1}; allowed: an object {judge: {metric: [number or null, ...]}}", scores={"j": 1}),
    of_step('FOLDER/c.json, run 0, step 0: p_harmful of j is [1, 1]; allowed: a number or null for each of 1 completions', scores={"j": {"p_harmful": [1, 1]}}),
]
