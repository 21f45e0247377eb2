"""Every row of the table of malformed inputs ends with its one line, and the page in docs/ is what the table says.

`python tests/test_malformed.py` writes the page.
"""

import html
import importlib.util
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "malformed_inputs.md"
MODULES = ("settings", "behaviors", "conversations", "folders", "templates", "samplers", "workdirs", "judges", "attacks")


def table():
    """All rows, in the order of the modules."""
    place = ROOT / "tests" / "malformed"
    spec = importlib.util.spec_from_file_location("malformed", place / "__init__.py", submodule_search_locations=[str(place)])
    sys.modules["malformed"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return [row for name in MODULES for row in importlib.import_module(f"malformed.{name}").ROWS]


ROWS = table()


def said(row, folder):
    """The message of a row, with FOLDER for the folder's name."""
    with pytest.raises(ValueError) as caught:
        row.run(folder)
    return str(caught.value).replace(str(folder), "FOLDER")


def fits(message, expected):
    """Whether a message is the expected one, in which `...` stands for anything."""
    return re.fullmatch(".*".join(re.escape(part) for part in expected.split("...")), message) is not None


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.entry}-{number}" for number, row in enumerate(ROWS)])
def test_one_line_that_names_the_place(row, tmp_path):
    message = said(row, tmp_path)
    assert "\n" not in message and len(message) < 1000
    assert fits(message, row.message), f"{message}\nis not\n{row.message}"
    assert re.search(r"config\.|--config|--mode|FOLDER|chat template of|line \d|config\.json", row.message), "it names no file, line or key"


def test_no_number_of_the_configuration_may_be_another_kind_or_not_finite():
    from dat_jax.config import defaults
    from dat_jax.settings import check_schema, dotted

    numbers = {key: value for key, value in dotted(defaults()) if isinstance(value, int | float) and not isinstance(value, bool)}
    assert len(numbers) > 100
    config, schema, put = defaults(), defaults(), sys.modules["malformed"].put
    for key, default in numbers.items():
        for value in (float("nan"), -float("inf"), "many", None):
            with pytest.raises(ValueError, match=re.escape(f"config.{key} is {value!r}; allowed: ")):
                check_schema(put(config, key, value), schema, ("sampler.prompt_tokens",))
        put(config, key, default)


def page():
    """The text of docs/malformed_inputs.md."""
    entries = list(dict.fromkeys(row.entry for row in ROWS))
    lines = [
        "# Malformed inputs", "",
        f"{len(ROWS)} inputs that are wrong, and what the program says. `tests/test_malformed.py` tries each of them: a `ValueError`, one",
        "line, before anything is compiled. The command line prints it behind `dat_jax: ` and ends with status 2.", "",
        "`FOLDER` stands for the folder of the files, `...` for words of another program or for what is different each time.", "",
        "| Way in | Inputs |", "|---|---|",
        *(f"| {entry} | {sum(row.entry == entry for row in ROWS)} |" for entry in entries),
    ]  # fmt: skip
    for entry in entries:
        lines += ["", f"## {entry}", "", "| Input | Message |", "|---|---|"]
        lines += [f"| {cell(row.what)} | {cell(row.message)} |" for row in ROWS if row.entry == entry]
    return "\n".join(lines) + "\n"


def cell(text):
    """A text as code in a table of Markdown, whatever it holds."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\n", "\\n"))
    return f"<code>{html.escape(printable, quote=False).replace('|', '&#124;').replace('{{', '{&#123;')}</code>"


def test_the_page_is_what_the_table_says():
    assert len(ROWS) >= 250 and len({(row.entry, row.what) for row in ROWS}) == len(ROWS)
    assert PAGE.read_text() == page(), "python tests/test_malformed.py writes it"


if __name__ == "__main__":
    PAGE.write_text(page())
