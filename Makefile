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

.PHONY: help quickstart test lint docs
help:
	@sed -n '2,6s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/installed-quickstart
	$(RUN) -m dat_jax.main --config=configs/quickstart.py $(ARGS)

test: lint
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m mypy dat_jax

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "docs: build/site/index.html"

# A stamp per set of requirements; setup.py is newer than the stamp when they have changed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); needed: Python 3.11 or newer (make PYTHON=python3.11 ...)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(VENV)/installed-quickstart: WHAT = -e .
$(VENV)/installed-test: WHAT = -e '.[test]'
$(VENV)/installed-docs: WHAT = 'mkdocs-material>=9.6,<10'
$(VENV)/installed-quickstart $(VENV)/installed-test $(VENV)/installed-docs: $(VENV)/installed-%: setup.py | $(VENV)/bin/python
	@echo "installing what make $* needs into $(VENV); a few minutes the first time"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(WHAT)
	@touch $@
