"""Chat templates of models, and jailbreak templates of users."""

import pathlib
import types

from dat_jax.data import chat_templates, conversations
from dat_jax.data.templates import read_templates
from malformed import Row, file, short

CHAT, JAILBREAK = "Chat templates", "Jailbreak templates"
DIALOG = [{"role": "user", "content": "Paint it"}]
RANGES = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def of_chat(template, message, dialog=None):
    """A tokenizer's chat template, given a conversation."""

    def run(folder: pathlib.Path) -> None:
        before, chat_templates._PROCESS = chat_templates._PROCESS, HURRIED
        try:
            tokenizer = types.SimpleNamespace(
                get_chat_template=lambda: template, chat_template=template, name_or_path="m", special_tokens_map={"bos_token": "<s>"}
            )
            asked = list(dialog or DIALOG)
            conversations._spans(tokenizer, asked, chat_templates.render(tokenizer, asked, True))
        finally:
            chat_templates._PROCESS = before

    roles = f", given {', '.join(message['role'] for message in dialog)}" if dialog else ""
    return Row(CHAT, short(template) + roles, run, message)


HURRIED = chat_templates._Process(0.3)  # seconds, so that a template that does not end is given up soon


def of_lines(content, message):
    return file(JAILBREAK, read_templates, "t.jsonl", content, message)


def of_yaml(content, message, what=""):
    return file(JAILBREAK, read_templates, "t.yaml", content, message, what)


ROWS = [
    of_chat(RANGES, "the chat template of 'm' is not rendered: it takes more than 0.3 seconds; allowed: a template that ends soon"),
    of_chat("{{ 'a' * (3 * 10 ** 9) }}", "the chat template of 'm' is not rendered: it takes more than 1024 MiB of memory; allowed: a template that ends soon"),
    of_chat("{{ 'a' | center(10 ** 10) }}", "the chat template of 'm' is not rendered: it takes more than 1024 MiB of memory; allowed: a template that ends soon"),
    of_chat("{{ '%10000000000d' % 1 }}", "the chat template of 'm' is not rendered: it takes more than 1024 MiB of memory; allowed: a template that ends soon"),
    of_chat("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "the chat template of 'm' is not rendered: it writes more than 16777216 characters; allowed: a template that ends soon"),
    of_chat("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template of 'm' is not rendered: it calls itself, or is nested, too deeply; allowed: a template that ends soon"),
    of_chat("{{ lipsum(n=10 ** 9) }}", "the chat template of 'm' is not rendered: it takes more than 0.3 seconds; allowed: a template that ends soon"),
    of_chat("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "the chat template of 'm' is not rendered: it takes more than 0.3 seconds; allowed: a template that ends soon"),
    of_chat("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "the chat template of 'm' is not rendered: it calls itself, or is nested, too deeply; allowed: a template that ends soon"),
    of_chat("{% for m in messages %}{{ m.content }}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{{ messages[0].content | nosuchfilter }}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{{ nothing.content.text }}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{{ ''.__class__.__mro__ }}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{{ 1 / 0 }}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{% include 'other.jinja' %}", "the chat template of 'm' refuses a conversation with roles user: ..."),
    of_chat("{{ raise_exception('System role\n not supported') }}", "the chat template of 'm' refuses a conversation with roles system, user: System role not supported", [{"role": "system", "content": "s"}, *DIALOG]),
    of_chat("", "the chat template of 'm' leaves out a message of role 'user'"),
    of_chat("{{ messages[0].role }}", "the chat template of 'm' leaves out a message of role 'user'"),
    of_chat("{{ messages[0].content | upper }}", "the chat template of 'm' rewrites the text of a message; its tokens cannot be told apart"),
    of_chat("{{ messages[0].content | replace('P', 'p') }}", "the chat template of 'm' rewrites the text of a message; its tokens cannot be told apart"),
    of_lines(None, 'FOLDER/t.jsonl: no such file'),
    of_lines({"name": "x", "template": "no place"}, "FOLDER/t.jsonl, line 1: the template 'x' has no place for the request; allowed: {{ prompt }} somewhere in it"),
    of_lines('{"name": "x", "template": "{prompt}"}\n' * 2, "FOLDER/t.jsonl, line 2: the template 'x' stands there twice; allowed: each once"),
    of_lines({"name": "x"}, "FOLDER/t.jsonl, line 1: no key 'template'; found: name"),
    of_lines({"name": "x", "template": 3}, 'FOLDER/t.jsonl, line 1: template is 3; allowed: a non-empty text'),
    of_lines({"name": "", "template": "{prompt}"}, "FOLDER/t.jsonl, line 1: name is ''; allowed: a non-empty text"),
    of_lines({"name": "x", "template": "{prompt}\0"}, "FOLDER/t.jsonl, line 1: template holds '\\x00'; allowed: a text without it"),
    of_yaml("name: [", 'FOLDER/t.yaml, line 1: not YAML: ParserError'),
    of_yaml("- a", 'FOLDER/t.yaml: found list; allowed: an object with the keys name and value'),
    of_yaml("name: a", "FOLDER/t.yaml, line 1: no key 'value'; found: name"),
    of_yaml("name: 3\nvalue: '{prompt}'", 'FOLDER/t.yaml, line 1: name is 3; allowed: a non-empty text'),
    of_yaml("name: !!python/object/apply:os.getcwd []\nvalue: '{prompt}'", 'FOLDER/t.yaml, line 1: not YAML: ConstructorError'),
    of_yaml("name: 2024-99-99\nvalue: '{prompt}'", 'FOLDER/t.yaml: not YAML: month must be in 1..12'),
    of_yaml("[" * 5000, 'FOLDER/t.yaml, line 1: lists or objects inside each other too deeply; allowed: 20'),
    of_yaml("name: a\nvalue: &a [*a]", 'FOLDER/t.yaml, line 1: value is [[...]]; allowed: a non-empty text'),
    of_yaml("name: a\nname: b\nvalue: '{prompt}'", "FOLDER/t.yaml: the key 'name' stands there more than once; allowed: each once"),
    of_yaml("1: a\nvalue: '{prompt}'", "FOLDER/t.yaml, line 1: no key 'name'; found: 1, value"),
    of_yaml(b"name: \x00\nvalue: x", 'FOLDER/t.yaml, line 1: not YAML: ReaderError'),
    Row(JAILBREAK, "a folder without .yaml files", lambda folder: read_templates(str(folder)), "FOLDER: no .yaml file there; allowed: a folder of PyRIT's templates, or JSON lines name, template"),
]
