"""The shape of the code: who may import whom, and how long a file and a function may be."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dat_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module imports from its own level, or from one above it in this list. Two modules stand below their packages: what
# files are, which everything reads and writes, and what a method is, which the training loop is handed.
ORDER = [
    {"data.files", "sharding", "settings", "endpoint", "platform", "signals"},
    {"data"},
    {"checkpoints"},
    {"models"},
    {"world", "diffusion"},
    {"methods.method"},
    {"training"},
    {"methods"},
    {"attacks"},
    {"judges"},
    {"serving"},
    {"report", "config"},
    {"presets", "serving.serve", "compilation", "stations"},
    {"main"},
]
LONGEST_FILE, LONGEST_FUNCTION = 420, 90  # lines


def module(path):
    """A file's dotted name below dat_jax."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


NAMES = {module(path) for path in FILES}


def level(name):
    """Where a module stands in ORDER."""
    found = [rank for rank, group in enumerate(ORDER) if name in group]
    return (found or [rank for rank, group in enumerate(ORDER) if name.split(".")[0] in group])[0]


def imported(path):
    """The modules of dat_jax that a file imports anywhere in it, for types and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("dat_jax.") for alias in node.names if alias.name.startswith("dat_jax."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if (node.module or "").partition(".")[0] == "dat_jax":
                base = node.module.removeprefix("dat_jax").lstrip(".")
                names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                yield from (name if name in NAMES else base for name in names)


def test_every_module_has_a_place():
    assert {module(path) for path in FILES if module(path)} and all(level(name) >= 0 for name in NAMES - {""})


def test_no_module_imports_from_a_later_one():
    wrong = [
        f"{module(path)} imports {name}"
        for path in FILES
        if module(path)
        for name in imported(path)
        if name and level(name) > level(module(path))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "name"),
    [("attacks", "judges"), ("judges", "attacks"), ("report", "stations"), ("config", "stations"), ("stations", "compilation.costs")],
)
def test_parts_that_must_not_know_each_other(importer, name):
    """Seams that are more than a matter of order: what an attack knows of a judge is given to it, and a report needs no station."""
    wrong = [
        f"{module(path)} imports {found}"
        for path in FILES
        if module(path).split(".")[0] == importer
        for found in imported(path)
        if found == name or found.startswith(f"{name}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_a_report_reads_files_alone():
    named = {name.split(".")[0] for path in FILES if module(path).split(".")[0] == "report" for name in imported(path)}
    assert not named & {"models", "training", "diffusion", "checkpoints"}


def test_files_and_functions_are_short():
    long = []
    for path in FILES:
        text = path.read_text()
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(PACKAGE)}, {node.name}: {lines} lines")
    assert not long, "\n".join(long)
