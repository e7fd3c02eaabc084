# Every target sets up its own prerequisites. Nothing is installed outside .venv.
PYTHON ?= python3
SEEDS  ?= 1
SMOKE  ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv corpus distill distill-pruned test test-fast reliability check format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

venv: $(STAMP)  ## create .venv with the pinned dependencies and this project (editable)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

corpus: $(STAMP)  ## make the text and the tokenizer of the tiny recipes, in data/stdlib
	$(BIN)/python tools/make_corpus.py --output data/stdlib --vocab-size 2048

distill: $(STAMP)  ## train teacher, distilled and label-only student, print one table (SEEDS=3: averages, SMOKE=1: 2 minutes)
	@$(BIN)/python -m tools.demo --seeds $(SEEDS) $(if $(SMOKE),--smoke)

distill-pruned: $(STAMP)  ## prune the teacher to half its size, then distil it and train it on labels (SEEDS, SMOKE)
	@$(BIN)/python -m tools.prune_demo --seeds $(SEEDS) $(if $(SMOKE),--smoke)

test: $(STAMP)  ## run the whole test suite
	$(BIN)/python -m pytest

test-fast: $(STAMP)  ## run the tests that take less than about 3 seconds each
	$(BIN)/python -m pytest -m "not slow"

reliability: $(STAMP)  ## run every fault many times, and the mutants, and write docs/reliability.md (45 minutes)
	$(BIN)/python -W ignore -m tests.reliability

check: $(STAMP)  ## lint, formatting, types, import contracts and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.words

format: $(STAMP)  ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove everything that make creates: .venv, demo runs, demo corpus and caches
	rm -rf $(VENV) runs/tiny runs/tiny-smoke data/stdlib build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
