# `make quickstart` and `make test` set everything up themselves; the rest expects `make setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/installed

# Processes that run tests beside each other: one more than cores, as many tests wait; each may take 2 GB.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores + 1 : 8)))
ARGS ?=

.PHONY: help setup quickstart check test chaos lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1|/' | awk -F'|' '{printf "  %-18s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with the tested versions; reused while pyproject.toml and constraints.txt stay as they are

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

quickstart: setup  ## draw films, pack, train frozen and end to end, compare: minutes on a laptop
	@PATH="$(BIN):$$PATH" bash launch/quickstart.sh

check: lint  ## what to run while working: lint, and the unit tests that take no seconds each; under two minutes
	$(BIN)/python -m pytest tests/unit -n $(WORKERS) -m 'not (ranks or slow or slurm or browser)' $(ARGS)

test: setup  ## all tests: make test WORKERS=0 ARGS='-m ranks -x' for some of them, one after the other
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

chaos: MINUTES ?= 10
chaos: SEED ?= 203
chaos: setup  ## kills, pauses, full disks and few descriptors on every stage: make chaos MINUTES=60 SEED=7
	$(BIN)/python -m pytest tests/chaos -s --chaos_minutes $(MINUTES) --chaos_seed $(SEED) --chaos_log chaos.log

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## the short form of every benchmark
	@for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:  ## remove .venv and caches; data and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
