# `make help` is the manual. Every target sets itself up from a bare Python 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTS  ?= tests
# Each has a target of its own: they need a browser, or minutes.
SHELL_TESTS := $(wildcard tests/integration/test_cli*.py tests/integration/test_docs*.py tests/integration/test_readme.py)
APART  := tests/faults tests/browser tests/status tests/contract tests/compose tests/record $(SHELL_TESTS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-shell test-faults test-fast test-browser test-api test-record test-histories compose-test screenshots lint docs bench lock soak clean

help: ## this manual
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Flightlog needs Python 3.11 or newer; name one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "Python lacks venv (Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(STAMP) ## a virtual environment in .venv with everything locked

demo: $(STAMP) ## train one model on three sites of this machine, and show what each sent out
	$(BIN)/flightlog demo

test: $(STAMP) ## units, and the site as it is used: real servers, real processes
	$(BIN)/python -P -m pytest -n 5 --dist worksteal $(TESTS) $(APART:%=--ignore %)

test-shell: $(STAMP) ## the command line, as it is typed, and what README and docs say can be
	$(BIN)/python -P -m pytest -n 4 --dist worksteal $(SHELL_TESTS)

test-faults: $(STAMP) ## real kills of real processes, and a seeded slice of the soak
	$(BIN)/python -P -m pytest -n 3 --dist worksteal tests/faults

test-fast: $(STAMP) ## only what needs no processes
	$(BIN)/python -P -m pytest -n 2 tests/unit

test-browser: $(STAMP) ## the pages in a real Chromium (Debian: apt-get install chromium)
	$(BIN)/python -P -m pytest tests/browser

test-api: $(STAMP) ## the status API, its own description (Schemathesis), and compose.yaml wired without Docker
	$(BIN)/python -P -m pytest -n 3 --dist loadfile tests/status tests/contract tests/compose

test-record: $(STAMP) ## the record: sealed, attacked, carried away, brought back (ATTACKS=1000)
	FLIGHTLOG_ATTACKS=$(or $(ATTACKS),1000) $(BIN)/python -P -m pytest -n 3 --dist worksteal tests/record

test-histories: $(STAMP) ## golden histories of every release, on every Python that is installed, under ten hash seeds
	$(BIN)/python -P -m tests.histories.everywhere

compose-test: ## the containers for real: needs a Docker engine
	deploy/compose-test

screenshots: $(STAMP) ## draw docs/pages/ anew, in the same Chromium
	$(BIN)/python -P -m tests.browser.screenshots docs/pages

lint: $(STAMP) ## ruff, mypy --strict, import contracts, generated docs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -P -m engine.catalogue --check docs

docs: $(STAMP) ## write the generated pages again (lifecycle, events, errors)
	$(BIN)/python -P -m engine.catalogue docs

bench: $(STAMP) ## measure; writes benchmarks/results/
	$(BIN)/python -P -m benchmarks

soak: $(STAMP) ## the seeded kills and races at full length (SEEDS=200)
	FLIGHTLOG_SOAK_SEEDS=$(or $(SEEDS),200) FLIGHTLOG_STREAM_SEEDS=$(or $(SEEDS),200) FLIGHTLOG_LANE_TRIES=100000 \
	  $(BIN)/python -P -m pytest -n 2 tests/faults/test_soak.py tests/faults/test_soak_messages.py \
	  tests/faults/test_streams_die.py tests/faults/test_lanes.py

LOCK = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q
lock: $(STAMP) ## resolve the locks anew (hashes, no hosts): everything, what runs, what the examples need
	$(BIN)/python -m pip install -q uv
	$(LOCK) --extra dev --extra examples -o requirements.lock pyproject.toml
	$(LOCK) -c requirements.lock -o requirements-runtime.lock pyproject.toml
	$(LOCK) -c requirements.lock --extra examples -o requirements-examples.lock pyproject.toml

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
