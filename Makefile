# `make demo` and `make test` work in a fresh clone: they create .venv and install what they need.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-torch-$(TORCH)
DOCS_INSTALLED := $(VENV)/installed-docs

.PHONY: help venv demo test test-slow check format bench gpu docs clean

help:
	@echo "make venv    create $(VENV) with everything (TORCH=$(TORCH), PYTHON=$(PYTHON))"
	@echo "make demo    train a small GAN eagerly and compiled, write stepgraph-demo.png"
	@echo "make test    run the tests"
	@echo "make test-slow  run the rest: Inductor, every layout of every kernel"
	@echo "make check   lint, types, layers"
	@echo "make format  format the code"
	@echo "make bench   measure training steps side by side (ARGS=--quick: within 3 minutes)"
	@echo "make gpu     check and measure the kernels on this machine's GPU (needs torch, triton)"
	@echo "make docs    build the documentation into site/, check its links"
	@echo "make clean   remove $(VENV) and caches"

venv: $(INSTALLED)

# torch first and alone, so that its version is ours to choose; the constraint keeps it there.
# Torch 2.11 brings triton 3.6, whose interpreter numpy 2.4 breaks.
# Again when what is asked for changes, or when a package appears beside the first one.
$(INSTALLED): pyproject.toml Makefile $(wildcard kernels/*/__init__.py)
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed-torch-*
	echo "torch==$(TORCH)" > $(VENV)/constraints.txt
	$(if $(filter 2.11.%,$(TORCH)),echo "numpy<2.4" >> $(VENV)/constraints.txt)
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt \
		--editable ".[demo,test,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m stepgraph.cli demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m slow $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --package stepgraph --package stepgraph_kernels
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.run $(ARGS)

# in the environment at hand, not in $(VENV): a GPU machine brings its own torch and triton
gpu:
	PYTHONPATH=kernels $(PYTHON) -m benchmarks.gpu $(ARGS)

# apart from the rest, so that tests need not install it
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[docs]"
	touch $@

# the variable: material warns of a future mkdocs, in every build
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean
	$(BIN)/python docs/site_tools/check.py site
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
