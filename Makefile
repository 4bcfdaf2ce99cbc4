# Everything that is run here runs in .venv, which is made once from pyproject.toml and constraints.txt.
#
# An NVIDIA or AMD card, or no card but a small download: name the index of the PyTorch build you want, once, e.g.
#     make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# Another PyTorch release than the pinned one: delete the line `torch==` in constraints.txt.

PYTHON   ?= python3
PIP_ARGS ?=
VENV     := .venv
BIN      := $(VENV)/bin

# Two test workers with one thread each fill two cores; on a larger machine: make test WORKERS=8
WORKERS  ?= 2
THREADS  ?= 1
ARGS     ?=

MIN_PYTHON := 3.11
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile --constraint constraints.txt $(PIP_ARGS)
TEST := OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) TOKENIZERS_PARALLELISM=false \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench docs docs-serve tables lock clean

help:  ## Show what there is
	@echo "make demo          set up, fetch a small model, answer a coding question and measure the speed-up"
	@echo "make test          the tests without the slow ones            (ARGS='-k tree' to choose)"
	@echo "make test-all      all tests, with real models"
	@echo "make lint          ruff, the format and the types"
	@echo "make format        rewrite the code in the house's format"
	@echo "make bench         decoding speed on this machine             (ARGS passes options on)"
	@echo "make docs          build the documentation into site/"
	@echo "make docs-serve    show the documentation on http://127.0.0.1:8000 while you edit it"
	@echo "make tables        renew the tables of methods in README.md and docs/ from the cards"
	@echo "make lock          pin the newest releases in constraints.txt"
	@echo "make clean         remove the environment and everything built here"

# -- the environment -------------------------------------------------------------------------------------------------

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)' found. Install Python $(MIN_PYTHON) or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; need = tuple(map(int, "$(MIN_PYTHON)".split("."))); sys.exit(f"error: $(PYTHON) is Python {sys.version.split()[0]}, Unspool needs $(MIN_PYTHON) or newer. Name another one: make PYTHON=python3.12" if sys.version_info < need else 0)'
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Unspool and what it runs on (about 1 GB, a few minutes the first time) ..."
	@$(INSTALL) --upgrade pip hatchling editables
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests, lint and documentation ..."
	@$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@# The extra xgrammar without triton, which is large and serves a GPU alone.
	@$(INSTALL) --no-deps 'xgrammar>=0.2.8' apache-tvm-ffi
	@touch $@

# -- what a user runs ------------------------------------------------------------------------------------------------

demo: $(VENV)/.installed
	@$(BIN)/unspool pull smollm2-135m
	@$(BIN)/unspool demo $(ARGS)

bench: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/decoding.py $(ARGS)

# -- what a contributor runs -----------------------------------------------------------------------------------------

test: $(VENV)/.installed-dev
	$(TEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev
	$(TEST) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

tables: $(VENV)/.installed-dev
	$(BIN)/python scripts/tables.py

lock:
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" bash scripts/lock.sh

clean:
	rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
