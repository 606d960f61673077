# Each target does its own set-up, in .venv. Needed: make, and Python 3.11 or newer.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

# A version manager leaves commands that exist and do not run, so each candidate is tried.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

# What the shell has set by accident: each target brings its own settings and databases.
unexport DATABASE_URL DJANGO_SETTINGS_MODULE PYTHONHOME PYTHONPATH

# The Python that was asked for, by place and version. Where none was asked for, any .venv that works is kept.
WANTED = $(if $(filter file default,$(origin PYTHON)),any,$$($(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)'))

.PHONY: help demo test test-postgres lint types docs bench admin clean FORCE

help:
	@echo "make demo    adopt a real old database and run a program on it"
	@echo "make test    the tests on SQLite and PostgreSQL (COVERAGE=1: with coverage)"
	@echo "make test-postgres VERSIONS=\"14 18\"    the tests of PostgreSQL on these versions (unless given, on all)"
	@echo "make lint    style and formatting"
	@echo "make types   mypy and pyright, strict"
	@echo "make docs    the documents as a site, in site/"
	@echo "make bench   the benchmark report"
	@echo "make admin   the admin on the demo's database"
	@echo "make clean   remove all that these made"

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

WORKERS := --numprocesses=logical --maxprocesses=4

# Coverage takes as much time as the tests do.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(WORKERS) $(if $(CI)$(COVERAGE),--cov) $(ARGS)
	$(if $(CI)$(COVERAGE),@echo "Branch coverage of agentdb/: $$($(BIN)/coverage report --include='agentdb/*' --format=total)%")

test-postgres: $(VENV)/.installed-test $(VENV)/.installed-postgres
	$(BIN)/python -m tests.helpers.servers $(VERSIONS) $(WORKERS) $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/zizmor --quiet --offline --no-progress .github/workflows

types: $(VENV)/.installed-lint $(VENV)/.installed-test
	$(BIN)/mypy
	$(BIN)/pyright
	@# In another folder, since here pyright looks at the source and not at the package.
	@PATH="$$(cd $(BIN) && pwd):$$PATH" sh -c 'cd $(VENV) && pyright --verifytypes agentdb --ignoreexternal --outputjson' \
		| $(BIN)/python -m tests.helpers.public_types

# The switch silences what Material says about itself, which --strict would take for a warning.
docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is site/index.html, which a browser opens as a file; site/llms-full.txt is all of it as one text."

bench: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

admin: demo/agentdb.sqlite3
	@$(BIN)/agentdb --url sqlite:///demo/agentdb.sqlite3 runadmin $(ARGS)

demo/agentdb.sqlite3: | $(VENV)/.installed
	@$(MAKE) --no-print-directory demo

clean:
	rm -rf $(VENV) demo build dist site .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .bench .postgres

# A .venv of another Python than the one asked for, one that was moved, or one that no longer runs is made anew.
define VENV_IS_GOOD
import os, pip, sys
made_here = f" {sys.prefix}\n" in open(os.path.join(sys.prefix, "pyvenv.cfg")).read()  # the command that made it
wanted = sys.argv[1] in ("any", f"{sys.base_prefix} {sys.version}")
sys.exit(not (made_here and wanted and os.path.exists(os.path.join(sys.prefix, ".pip"))))
endef
export VENV_IS_GOOD

# The pip that comes with Python 3.11 knows no dependency groups.
$(VENV)/.pip: FORCE
	@if $(BIN)/python -c "$$VENV_IS_GOOD" "$(WANTED)" 2>/dev/null; then exit 0; fi; \
	test -n "$(PYTHON)" || { \
		echo "agentdb needs Python 3.11 or newer with its venv module, and none was found." >&2; \
		echo "Install one (Debian, Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; }; \
	test ! -d $(VENV) || test -e $(VENV)/pyvenv.cfg || test -z "$$(ls -A $(VENV))" || { \
		echo "$(VENV) is a folder that holds other things than a virtual environment. Name another: make VENV=FOLDER" >&2; \
		exit 1; }; \
	python=$$($(PYTHON) -c 'import sys; print(sys._base_executable)') || exit 1; \
	echo "Making $(VENV) with $$("$$python" --version)."; \
	"$$python" -m venv --clear $(VENV) && $(PIP) 'pip>=25.1' && touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.pip
	@echo "Installing agentdb into $(VENV)."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing what 'make $*' needs into $(VENV)."
	@$(PIP) --group $*
	@touch $@
