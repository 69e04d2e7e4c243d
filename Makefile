# `make` alone lists the targets. Nothing but Python 3.11 or newer, git and make is needed beforehand.
PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
MODEL ?= ../shared/models/reviews-llama-8m
WORKERS ?= 2
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt
# The build back-end is pinned too: it is installed first, and sonde is then built with it, not with the newest one.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location -c constraints.txt
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# One thread per test worker, so that workers do not share cores; no test waits for a hub.
test-fast test: export OMP_NUM_THREADS = 1
test-fast test: export OPENBLAS_NUM_THREADS = 1
test-fast test: export MKL_NUM_THREADS = 1
test-fast test: export TOKENIZERS_PARALLELISM = false
test-fast test: export HF_HUB_OFFLINE = 1

.DEFAULT_GOAL := help
.PHONY: help install install-offline demo format lint types imports check test test-fast bench tables site clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sonde needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.offline: $(PINS) | $(BIN)/python
	@echo "installing sonde and the offline model into $(VENV) (one to three minutes)"
	@$(INSTALL) hatchling editables
	@$(INSTALL) --no-build-isolation -e '.[offline]'
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	@echo "installing sonde, the offline model and the development tools into $(VENV) (one to three minutes)"
	@$(INSTALL) hatchling editables
	@$(INSTALL) --no-build-isolation -e '.[offline,finetune,onnx,prompt,ray,sentencepiece,serve,dev]'
	@touch $@ $(VENV)/.offline

install-offline: $(VENV)/.offline ## create .venv with sonde and the offline model
install: $(VENV)/.dev ## the same, with the development tools

# Threads that wait sleep: beside other busy programs, threads that spin take each other's cores, many times as slow.
demo: $(VENV)/.offline ## fit, evaluate, save, reload and predict on examples/support.csv, offline
	OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py

format: $(VENV)/.dev ## is the code formatted? (to format it: .venv/bin/ruff format)
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## do imports go one way?
	$(BIN)/lint-imports

check: format lint types imports ## the four above

test-fast: $(VENV)/.dev ## the tests that take seconds
	$(PYTEST) -m 'not slow'

test: check ## everything: install, check, all tests
	$(PYTEST)

bench: $(VENV)/.offline ## how fast is this machine? docs/performance.md, from DATA and MODEL=../shared/models/...
	$(BIN)/python benchmarks/reading.py --data $(DATA) --int8
	$(BIN)/python benchmarks/limit.py --data $(DATA)
	$(BIN)/python benchmarks/released.py --data $(DATA) --model $(MODEL)
	$(BIN)/python benchmarks/memory.py --data $(DATA)
	$(BIN)/python benchmarks/training.py --data $(DATA) --model $(MODEL)
	$(BIN)/python benchmarks/start.py --data $(DATA)
	$(BIN)/python benchmarks/growth.py --data $(DATA)
	$(BIN)/python benchmarks/performance.py

tables: $(VENV)/.offline ## the tables of docs/results, from the data sets in DATA=../shared/data
	$(BIN)/sonde bench tables --data $(DATA)

site: $(VENV)/.dev ## the documentation as pages: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove .venv and what the tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build site
