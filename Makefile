# Each target does its own set-up, in .venv. Needed: make, and Python 3.11 or newer.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

# A version manager leaves commands that exist and do not run, so each candidate is tried.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: help demo test lint types bench admin clean

help:
	@echo "make demo    adopt a real old database and run a program on it"
	@echo "make test    the tests on SQLite and PostgreSQL, with coverage"
	@echo "make lint    style and formatting"
	@echo "make types   mypy and pyright, strict"
	@echo "make bench   the benchmark report"
	@echo "make admin   the admin on the demo's database"
	@echo "make clean   remove all that these made"

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 $(ARGS) --cov
	@echo "Branch coverage of agentdb/: $$($(BIN)/coverage report --include='agentdb/*' --format=total)%"

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-lint $(VENV)/.installed-test
	$(BIN)/mypy
	$(BIN)/pyright

bench: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

admin: demo/agentdb.sqlite3
	@$(BIN)/agentdb --url sqlite:///demo/agentdb.sqlite3 runadmin $(ARGS)

demo/agentdb.sqlite3: | $(VENV)/.installed
	@$(MAKE) --no-print-directory demo

clean:
	rm -rf $(VENV) demo build dist .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .bench

# The pip that comes with Python 3.11 knows no dependency groups.
$(VENV)/.pip:
	@test -n "$(PYTHON)" || { \
		echo "agentdb needs Python 3.11 or newer with its venv module, and none was found." >&2; \
		echo "Install one (Debian, Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'pip>=25.1'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.pip
	@echo "Installing agentdb into $(VENV)."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing what 'make $*' needs into $(VENV)."
	@$(PIP) --group $*
	@touch $@
