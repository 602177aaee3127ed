# Every target sets up all it needs in .venv; constraints.txt holds the exact versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together, since they share what they build.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check quick reliability fuzz setup dist clean

## The main job on an embedded model: train, fold, quantize, prove, compare.
demo: $(VENV)/.demo
	$(BIN)/lorafold demo

## All tests.
test: $(VENV)/.dev
	$(PYTEST)

## What must hold before every commit: lint, format, types, quick tests.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

## Faults, kills, flipped bits, hostile files: each tool rewrites its part of docs/reliability.md.
reliability: $(VENV)/.dev
	$(BIN)/python tools/faults/strike.py --page docs/reliability.md
	$(BIN)/python tools/faults/kill_train.py --kills 1000 --page docs/reliability.md
	$(BIN)/python tools/faults/flip_bits.py --page docs/reliability.md
	$(BIN)/python tools/faults/fuzz.py --seconds 20 --jobs 2 --page docs/reliability.md  # make fuzz: the long run
	$(BIN)/python tools/faults/hostile_words.py --page docs/reliability.md
	$(BIN)/python tools/faults/split_texts.py --page docs/reliability.md

## What a release uploads: source distribution and wheel in dist/, checked as PyPI checks them.
dist: $(VENV)/bin/python
	rm -rf dist build
	$(BIN)/pip install -q build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

## A million changed files for each parser, in turns, or as many as ten hours give; counts add up over runs.
fuzz: $(VENV)/.dev
	$(BIN)/python tools/faults/fuzz.py --minutes 600 --jobs 2 --page docs/reliability.md

quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

setup: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# llama-cpp-python compiles llama.cpp once: its own line, so that its progress is seen; pip keeps the wheel.
$(VENV)/.llama: constraints.txt | $(VENV)/bin/python
	@$(BIN)/python -c "import sys; sys.exit('lorafold needs Python 3.10 or newer') if sys.version_info < (3, 10) else None"
	@echo "Installing llama-cpp-python. The first time it is compiled from source: about 6 minutes on two cores."
	$(BIN)/pip install --progress-bar off -c constraints.txt llama-cpp-python
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.llama
	$(BIN)/pip install -q -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.llama
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info
