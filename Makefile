# Everything that has to be set up, in one command each. On a machine with Python 3.11 or newer and nothing else:
#   make quickstart      the whole job on the embedded world; ARGS="--config.seeds=1" passes options on
#   make test            style, types and all tests; ARGS="-m 'not slow'" passes options on to pytest
#   make lint            style and types
#   make docs            the documentation, in build/site/index.html
# Each makes the virtual environment if it is not there. PYTHON=python3.12 and VENV=/path/of/it may be given.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN = $(VENV)/bin/python

$(if $(filter-out 1,$(words $(VENV))),$(error VENV is "$(VENV)"; needed: a path without spaces))

.PHONY: help quickstart test lint docs
help:
	@sed -n '2,6s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/installed-quickstart
	$(RUN) -m dat_jax.main --config=configs/quickstart.py $(ARGS)

# Tests call programs that the extra installs, as shellcheck.
test: lint
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) -m pytest $(ARGS)

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m mypy dat_jax

# Not with --quiet: it hides the warnings from --strict, which then passes.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "docs: build/site/index.html"

# A stamp per set of requirements; setup.py is newer than the stamp when they have changed.
$(VENV)/installed-quickstart: WHAT = -e .
$(VENV)/installed-test: WHAT = -e '.[test]'
$(VENV)/installed-docs: WHAT = -e '.[docs]'
$(VENV)/installed-quickstart $(VENV)/installed-test $(VENV)/installed-docs: $(VENV)/installed-%: setup.py | $(VENV)/bin/python
	@echo "installing what make $* needs into $(VENV); a few minutes the first time"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(WHAT)
	@touch $@

# Debian's Python lacks ensurepip until a package of its own is installed; venv would leave half an environment.
$(VENV)/bin/python:
	@found=$$($(PYTHON) -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null) || { echo "make: $(PYTHON) is $${found:-no Python that runs}; needed: Python 3.11 or newer" \
		"(make $(or $(MAKECMDGOALS),quickstart) PYTHON=python3.11)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) lacks ensurepip, which a virtual environment needs;" \
		"on Debian and Ubuntu: apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

.DELETE_ON_ERROR:  # an environment that was not made to its end is made again
.NOTPARALLEL:  # one pip at a time in an environment
