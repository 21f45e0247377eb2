"""Templates are rendered as transformers does it, and one that never ends, or builds too much, ends with one line."""

import importlib.util
import pathlib
import signal
import time

import pytest

from dat_jax.data import chat_templates

spec = importlib.util.spec_from_file_location("chat_templates_of_families", pathlib.Path(__file__).with_name("chat_templates.py"))
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

CHAT = [{"role": role, "content": text} for role, text in (("user", " Wie geht's? \U0001f600 <b>"), ("assistant", "Gut.\n"), ("user", "x"))]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.fixture
def hurried(monkeypatch):
    """A process that gives a template a fifth of a second."""
    process = chat_templates._Process(0.2)
    monkeypatch.setattr(chat_templates, "_PROCESS", process)
    yield process
    if process._running:
        process._close(process._running)


def tokenizer(template):
    return families.byte_tokenizer(template, ["<s>", "</s>"], "<s>", "</s>")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_conversation_is_written_as_transformers_writes_it(name):
    given = families.byte_tokenizer(*families.FAMILIES[name][:4])
    for chat in (CHAT[:1], CHAT[:2], CHAT):
        for prompt in (True, False):
            expected = given.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert chat_templates.render(given, chat, prompt) == expected


def test_the_filters_and_tags_that_transformers_adds():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{% generation %}{{ m.content | tojson }}"
        "{% endgeneration %}\n{% endfor %}{{ bos_token }}{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is none }}"
        "{{ {'a': '<', 'b': [1]} | tojson(indent=2) }}{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}{{ dict(a=1) }}"
    )
    given = tokenizer(template)
    assert chat_templates.render(given, CHAT, False) == given.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOPS, "it takes more than 0.2 seconds"),
        ("{{ 'a' * (3 * 10 ** 9) }}", "it takes more than 1024 MiB of memory"),
        ("{{ 'a' | center(10 ** 10) }}", "it takes more than 1024 MiB of memory"),
        ("{% for i in range(9999) %}{{ messages[0].content }}{{ 'a' * 9999 }}{% endfor %}", "it writes more than 16777216 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself, or is nested, too deeply"),
    ],
)
def test_a_template_that_does_not_end_is_one_line(hurried, template, reason):
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:
        chat_templates.render(tokenizer(template), CHAT, True)
    assert str(caught.value).endswith(f"is not rendered: {reason}; allowed: a template that ends soon")
    assert time.monotonic() - started < 60
    assert chat_templates.render(tokenizer("{{ messages[0].role }}"), CHAT, True) == "user"  # by a new process, where it was ended


def test_the_limit_on_time_holds_where_the_program_ignores_its_signal(hurried):
    """As libtpu has it ignored; what a process ignores, those that it starts ignore, too."""
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with pytest.raises(ValueError, match=r"it takes more than 0\.2 seconds"):
            chat_templates.render(tokenizer(LOOPS), CHAT, True)
    finally:
        signal.signal(signal.SIGPROF, before or signal.SIG_IGN)  # None: it was not Python that said what to do


def test_a_process_that_was_ended_from_outside_is_started_anew(hurried):
    given = tokenizer("{{ messages | length }}")
    assert chat_templates.render(given, CHAT, True) == "3"
    hurried._running.kill()
    hurried._running.wait()
    assert chat_templates.render(given, CHAT, True) == "3"
