"""The process that renders chat templates, so that none of them takes the program's time or memory; started by `chat_templates`.

A template of a model's folder is a program. jinja's sandbox keeps it from files and from Python's internals, and bounds neither what it
repeats nor what it builds. The limits here are the operating system's. Reads a JSON object {template, variables} per line, answers with
{text} or {error, what}. Nothing of this package is imported: this file is run by its path.
"""

import datetime
import functools
import json
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY = 1 << 30  # bytes of addresses, of which Python and jinja take a twentieth
SECONDS = 2.0  # of a processor, for one rendering; real templates take milliseconds
CHARACTERS = 1 << 24  # of a rendered conversation


class Generation(jinja2.ext.Extension):
    """The tag {% generation %}, by which some templates mark the assistant's words; what is inside is written as it is."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Returns the inside in a scope of its own, as transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(x: object, ensure_ascii: bool = False, indent: int | None = None, separators=None, sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(16)
def _compiled(template: str) -> jinja2.Template:
    """What transformers compiles, with the same filters and functions."""
    extensions = (Generation, jinja2.ext.loopcontrols)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def answer(line: str) -> dict[str, str]:
    """Renders what a line asks for."""
    try:
        asked = json.loads(line)
        pieces, size = [], 0
        for piece in _compiled(asked["template"]).generate(asked["variables"]):
            pieces.append(piece)
            size += len(piece)
            if size > CHARACTERS:
                return {"what": "limit", "error": f"it writes more than {CHARACTERS} characters"}
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"what": "limit", "error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"what": "limit", "error": "it calls itself, or is nested, too deeply"}
    except Exception as error:  # a template raises what it likes
        return {"what": "refusal", "error": str(error) or type(error).__name__}


def main(seconds: float) -> None:
    """Answers until the input ends, which it does with the process that started this one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # libtpu has its process ignore it, and what that process starts does so too
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends this process, also in the middle of one long operation
        found = json.dumps(answer(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(found, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
