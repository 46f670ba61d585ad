# `make demo` and `make test` are all the set-up there is: both create .venv on first use.
# PYTHON=/path/to/python3.12 chooses the interpreter.

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
WORKERS ?= 2
SEED ?= 0

# tests start many processes, each of which would compile the package anew
unexport PYTHONDONTWRITEBYTECODE

# modules of others, what makes models, and what asks what to compare
NOT_RUN = $(addprefix benchmarks/,common.py torch_interpreter.py torch_operators.py same_results.py predicted.py) \
  $(wildcard benchmarks/make_*.py)

.PHONY: help demo test test-slow lint format types docs bench campaigns release-check clean

help:
	@echo "make demo       prune and evaluate a sample model"
	@echo "make test       the test suite (minutes); make test-slow: the long tests"
	@echo "make lint types formatting and lint rules; strict type checking"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make bench      the benchmarks (long)"
	@echo "make campaigns  damaged files, kills, full disks, random cuts (long); SEED=1 for others"
	@echo "make release-check   wheel and sdist, installed in new environments, with each extra (downloads)"

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found" >&2; \
	  echo "hint: install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot create a virtual environment" >&2; \
	  echo "hint: on Debian and Ubuntu, apt install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh sample_models/demo.sh

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

$(READY_DOCS): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "written: build/site/index.html"

release-check: $(READY)
	sh tests/release.sh $(BIN)/python

bench: $(READY)
	@for script in $(filter-out $(NOT_RUN),$(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

campaigns: $(READY)
	@status=0; for name in models texts kills disk networks; do \
	  $(BIN)/python -m campaigns.$$name --seed $(SEED) || status=1; done; \
	$(BIN)/python -m pytest tests/cli/test_layouts.py || status=1; exit $$status

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
