"""What surrounds the code: make and its errors, versions that agree, and jax in one range everywhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text()


@pytest.fixture
def make(tmp_path):
    """make(*arguments) -> (exit status, output), with an environment to be made in tmp_path/venv."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    variables = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV", "ARGS")
    }

    def run(*arguments):
        command = ["make", f"VENV={tmp_path / 'venv'}", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def python(tmp_path):
    """python(cases) writes an interpreter that is this one but for the cases of a shell's `case "$*"`."""

    def write(cases):
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return f"PYTHON={path}"

    return write


def test_help_is_the_default_and_names_every_target(make):
    status, output = make()
    assert status == 0 and output == make("help")[1]
    assert all(f"make {target} " in output for target in ("quickstart", "test", "lint", "docs"))


@pytest.mark.parametrize(
    ("target", "requirement", "command"),
    [
        ("quickstart", "-e .", "bin/python -m dat_jax.main --config=configs/quickstart.py --x=1"),
        ("test", "-e '.[test]'", "bin/python -m pytest --x=1"),
        ("docs", "-e '.[docs]'", "bin/python -m mkdocs build --strict"),
    ],
)
def test_an_environment_is_made_filled_and_used(make, target, requirement, command):
    status, output = make("-n", target, "ARGS=--x=1")
    lines = output.splitlines()
    assert status == 0
    steps = [next(i for i, line in enumerate(lines) if text in line) for text in ("-m venv", f" {requirement}", "touch", command)]
    assert steps == sorted(steps)


def test_an_old_or_missing_python_is_one_error(make, python):
    status, output = make("lint", python('*version_info*) echo "Python 3.10.2"; exit 1;;'))
    assert status == 2 and "is Python 3.10.2; needed: Python 3.11 or newer (make lint PYTHON=python3.11)" in output
    status, output = make("lint", "PYTHON=no_such_python")
    assert status == 2 and "no_such_python is no Python that runs; needed: Python 3.11 or newer" in output


def test_a_missing_ensurepip_names_the_package(make, python):
    status, output = make("lint", python("*ensurepip*) exit 1;;"))
    assert status == 2 and f"apt install python3.{sys.version_info.minor}-venv" in output


def test_half_an_environment_is_not_kept(make, python, tmp_path):
    status, _ = make("lint", python('"-m venv"*) mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/python"; exit 1;;'))
    assert status == 2 and not (tmp_path / "venv" / "bin" / "python").is_symlink()


def test_a_path_with_spaces_is_refused(make):
    status, output = make("lint", "VENV=a b")
    assert status == 2 and 'VENV is "a b"; needed: a path without spaces' in output


def test_one_version_everywhere():
    version = re.search(r'version="(.*?)"', SETUP)[1]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert version in re.search(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]


def test_jax_has_one_range():
    """No wider than what is tested, in the extras too."""
    ranges = re.findall(r'"jax(?:\[\w+\])?([<>=].*?)"', SETUP)
    assert len(ranges) == 3 and set(ranges) == {">=0.10,<0.11"}
