PYTHON ?= python3
VENV := .venv
SECONDS ?= 60
MACOS_CORE = $(addprefix tests/,api formats sources outputs methods adapters encodings layouts faults spectral \
	test_system.py devices/test_host.py cli/test_app.py cli/test_process.py cli/test_refusals.py pipeline/test_run.py \
	pipeline/test_promises.py pipeline/test_runs_in_parts.py pipeline/test_overlap.py pipeline/test_libraries.py)
BIN := $(VENV)/bin
# more threads of NumPy and torch would compete with the workers
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
SPHINX = PYTHONDONTWRITEBYTECODE=1 $(BIN)/sphinx-build -b html -n -W --keep-going -q
OUTSIDE := '(<(script|link|img|iframe)[^>]+(src|href)=.?|url\(.?|@import .?)(https?:)?//[^ >]*'
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt

.PHONY: help install demo test test-cuda test-cards test-macos test-slow test-again test-mutants fuzz lint types docs docs-check check bench evidence fmt build audit release-check clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed  ## Create an environment in .venv with everything for development

$(VENV)/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,docs]'
	@touch $@

$(VENV)/demo-installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	@touch $@

demo: $(VENV)/demo-installed  ## Train a small network, fine-tune it, edit it, and compare the three
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/demo.py

test: install  ## Run all tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --dist loadscope

test-cuda: install  ## Run the tests for CUDA, on an emulated card where there is no real one
	$(ONE_THREAD) $(BIN)/python -m pytest --cards 1 -m cuda -q -n auto --dist loadscope

test-cards: install  ## Run all tests on two emulated cards
	$(ONE_THREAD) $(BIN)/python -m pytest --cards 2 -q -n auto --dist loadscope

test-macos: install  ## Run the core of the tests without the calls that Python on macOS lacks
	$(ONE_THREAD) MONOSOUP_SYSTEM=macos PYTHONPATH="$(CURDIR)/tests/macos:$(CURDIR)" $(BIN)/python -m pytest -q \
		-n auto --dist loadscope $(MACOS_CORE)

test-slow: install $(VENV)-mergekit/installed  ## Run the tests that take minutes: many faults, many seeds, mergekit
	$(ONE_THREAD) MERGEKIT="$(CURDIR)/$(VENV)-mergekit" $(BIN)/python -m pytest -m thorough -n auto

test-again: install  ## Run all tests, and make every output that they make again from its report
	$(ONE_THREAD) $(BIN)/python -m pytest --again -n auto --dist loadscope

test-mutants: install  ## Break the code for cards in many ways, and see that the tests notice each
	$(ONE_THREAD) $(BIN)/python -m tests.card.mutants

$(VENV)/fuzz-installed: $(VENV)/installed
	$(INSTALL) -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/fuzz-installed  ## Fuzz what reads files, SECONDS=60 for each reader
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz $(SECONDS)

lint: install  ## Check style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions action.yml

types: install  ## Check static types
	$(BIN)/mypy

docs: install  ## Regenerate docs/cli.md, run the tutorial, and build the site in docs/_build/html
	$(BIN)/typer monosoup_cli.cli.app utils docs --name monosoup --output docs/cli.md
	$(BIN)/python docs/notebook_page.py
	$(SPHINX) -d docs/_build/doctrees docs docs/_build/html
	@echo 'the site: docs/_build/html/index.html'

docs-check: install  ## Check that docs/cli.md is current, and the site's links and resources
	@drafts=$$(mktemp -d) && trap 'rm -rf "$$drafts"' EXIT \
		&& $(BIN)/typer monosoup_cli.cli.app utils docs --name monosoup --output "$$drafts/cli.md" >/dev/null \
		&& { diff docs/cli.md "$$drafts/cli.md" || { echo 'docs/cli.md is out of date: run make docs'; exit 1; }; } \
		&& $(SPHINX) -d "$$drafts/doctrees" docs "$$drafts/html" \
		&& ! grep -rnoE --include='*.html' --include='*.css' $(OUTSIDE) "$$drafts/html"

check: lint types test test-cuda docs-check  ## Run everything that CI checks

$(VENV)-mergekit/installed: .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)-mergekit
	$(VENV)-mergekit/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(grep '^torch==' .ci/constraints.txt)" mergekit==0.1.5
	@touch $@

bench: install $(VENV)-mergekit/installed  ## Measure speed and memory against named rivals, for docs/benchmarks.md
	MERGEKIT="$(CURDIR)/$(VENV)-mergekit" $(BIN)/python -m tests.benchmarks

$(VENV)-evidence/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)-evidence
	$(VENV)-evidence/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt \
		-e . matplotlib numpy peft scikit-learn scipy transformers
	@touch $@

evidence: $(VENV)-evidence/installed  ## Train small models, score every method on them, and write docs/evidence.md
	$(VENV)-evidence/bin/python -m docs.evidence

fmt: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: install  ## Build the source distribution and the wheel in dist/
	$(INSTALL) build
	$(BIN)/python -m build

$(VENV)-release/installed: .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt \
		build twine pip-audit cyclonedx-bom mypy
	@touch $@

audit: $(VENV)-release/installed  ## Look up known vulnerabilities of the pinned versions
	@found=$$(mktemp) && trap 'rm -f "$$found"' EXIT; \
		$(VENV)-release/bin/pip-audit -r .ci/constraints.txt --no-deps --disable-pip --strict --desc --progress-spinner off \
			--format markdown --output "$$found" \
		|| { cat "$$found"; test -s "$$found" \
			|| echo 'no audit: the service was not reached, or does not know a package'; exit 1; }

release-check: $(VENV)-release/installed  ## Build what is released, try the wheel in an empty environment, list what is in it
	rm -rf dist
	$(VENV)-release/bin/python -m build
	$(VENV)-release/bin/twine check --strict dist/*
	@unset PYTHONPATH; empty=$$(mktemp -d) && trap 'rm -rf "$$empty"' EXIT \
		&& $(PYTHON) -m venv "$$empty" && pip="$$empty/bin/python -m pip install --quiet --disable-pip-version-check" \
		&& $$pip --no-index --no-deps --find-links dist monosoup && $$pip -c .ci/constraints.txt monosoup \
		&& (cd "$$empty" && bin/monosoup --version && bin/monosoup --help >/dev/null && bin/python -m pip check \
			&& PATH="$$empty/bin:$$PATH" bin/python -I '$(CURDIR)/tests/first_commands.py' \
			&& '$(CURDIR)/$(VENV)-release/bin/mypy' --strict --config-file '' --cache-dir "$$empty/mypy" \
				--python-executable bin/python '$(CURDIR)/tests/typed_program.py') \
		&& "$$empty/bin/python" -m pip uninstall --quiet --yes pip setuptools \
		&& $(VENV)-release/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
			--output-reproducible --validate --output-file dist/monosoup.cdx.json "$$empty/bin/python"
	@echo 'the bill of materials: dist/monosoup.cdx.json'

clean:  ## Remove everything that make created
	rm -rf $(VENV) $(VENV)-evidence $(VENV)-mergekit $(VENV)-release .evidence docs/_build build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
