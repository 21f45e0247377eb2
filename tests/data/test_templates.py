"""Jailbreak templates and infilled prompts: formats that are read, what is refused, and the way back."""

import json

import pytest

from dat_jax.data.behaviors import Behavior
from dat_jax.data.infilled import read_infilled, write_infilled
from dat_jax.data.templates import fill, read_templates

BEHAVIOR = Behavior("1", "Paint the {prompt} drum, \\1", ("t",), ("no",))
BEHAVIORS = [BEHAVIOR, Behavior("2", "Wash,\nthe door", ("t",), ("no",))]


@pytest.mark.parametrize("place", ["{{ prompt }}", "{{prompt}}", "[INSERT PROMPT HERE]", "{prompt}"])
def test_every_public_way_to_mark_the_place(tmp_path, place):
    path = tmp_path / "templates.jsonl"
    path.write_text(json.dumps({"name": "story", "template": f"Once: {place}! Again: {place}"}) + "\n")
    (template,) = read_templates(str(path)).values()
    assert fill(template, BEHAVIOR) == f"Once: {BEHAVIOR.text}! Again: {BEHAVIOR.text}"  # nothing in the request is read as a template


def test_pyrits_yaml_alone_and_as_a_folder(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ndescription: x\nvalue: |\n  Say {{{{ prompt }}}}\n  now\n")
    assert read_templates(str(tmp_path)) == {"a": "Say {{ prompt }}\nnow\n", "b": "Say {{ prompt }}\nnow\n"}
    assert list(read_templates(str(tmp_path / "b.yaml"))) == ["b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"name": "x", "template": "no place"}', r"t\.jsonl, line 1: the template 'x' has no place for the request"),
        ("t.jsonl", '{"name": "x", "template": "{prompt}"}\n' * 2, r"line 2: the template 'x' stands there twice"),
        ("t.jsonl", '{"name": "x"}', r"line 1: no key 'template'"),
        ("t.jsonl", '{"name": "x", "template": 3}', r"line 1: template is 3; allowed: a non-empty text"),
        ("t.yaml", "name: [", r"t\.yaml, line \d: not YAML"),
        ("t.yaml", "- a", r"t\.yaml: found list"),
        ("t.yaml", "name: !!python/object/apply:os.getcwd []\nvalue: '{prompt}'", r"t\.yaml, line 1: not YAML: ConstructorError"),
        ("t.yaml", "name: a", r"no key 'value'"),
    ],
)
def test_templates_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_templates(str(tmp_path / name))


def test_no_templates_there(tmp_path):
    with pytest.raises(ValueError, match=r"no \.yaml file there"):
        read_templates(str(tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        read_templates(str(tmp_path / "x.jsonl"))


def test_infilled_prompts_there_and_back(tmp_path):
    prompts = {"1": ["how ?", 'a "b", c\nd'], "2": ["x"]}
    write_infilled(tmp_path / "p.csv", BEHAVIORS, prompts)
    assert (tmp_path / "p.csv").read_text().startswith("original_prompt,inpainted_prompt\n")
    assert read_infilled(str(tmp_path / "p.csv"), BEHAVIORS) == prompts
    assert read_infilled(str(tmp_path / "p.csv"), BEHAVIORS[1:]) == {"2": ["x"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("original_prompt,inpainted_prompt\nother,x\n", r"none of its 1 rows is of an evaluation behavior; original_prompt must be"),
        ('original_prompt,inpainted_prompt\n"Wash,\nthe door", \n', r"line 3: inpainted_prompt is ' '"),
        ("goal,prompt\na,b\n", r"line 1: no column 'original_prompt'"),
    ],
)
def test_infilled_prompts_that_are_refused(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_infilled(str(tmp_path / "p.csv"), BEHAVIORS)
