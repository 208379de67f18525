PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt

.PHONY: help install demo test lint types docs docs-check check bench fmt build clean

help:  ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed  ## An environment in .venv with everything for development

$(VENV)/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/demo-installed: $(VENV)/installed
	$(INSTALL) -e '.[demo]'
	@touch $@

demo: $(VENV)/demo-installed  ## Train a small network, fine-tune it, edit it, and compare
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/demo.py

test: install  ## All tests
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest  # NumPy's threads would spin beside the workers

lint: install  ## Style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Static types
	$(BIN)/mypy

docs: install  ## Write docs/cli.md anew from the commands
	$(BIN)/typer monosoup_cli.cli.app utils docs --name monosoup --output docs/cli.md

docs-check: install  ## docs/cli.md is what the commands say
	@draft=$$(mktemp) && trap 'rm -f "$$draft"' EXIT \
		&& $(BIN)/typer monosoup_cli.cli.app utils docs --name monosoup --output "$$draft" >/dev/null \
		&& diff docs/cli.md "$$draft" || { echo 'docs/cli.md is out of date: run make docs'; exit 1; }

check: lint types test docs-check  ## Everything that CI checks

$(VENV)-mergekit/installed: .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)-mergekit
	$(VENV)-mergekit/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(grep '^torch==' .ci/constraints.txt)" mergekit==0.1.5
	@touch $@

bench: install $(VENV)-mergekit/installed  ## Speed and memory against named rivals, for docs/benchmarks.md
	MERGEKIT="$(CURDIR)/$(VENV)-mergekit" $(BIN)/python -m tests.benchmarks

fmt: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: install  ## Source distribution and wheel in dist/
	$(INSTALL) build
	$(BIN)/python -m build

clean:  ## Remove what make made
	rm -rf $(VENV) $(VENV)-mergekit build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
