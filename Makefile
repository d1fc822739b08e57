# Needed beforehand: Python 3.11 or newer, git, make. Everything else is installed into .venv from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench lock clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## Create .venv from the lock and initialise the DVC and MLflow stores

demo: $(READY)  ## The whole road on synthetic data: data, training, evaluation, registry, promotion, transfer
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/drp demo

check: $(READY)  ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check  ## check, then every test
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

bench: $(READY)  ## Speed on this CPU against the plain forms; writes docs/benchmarks.md (10 minutes, a quiet machine)
	$(BIN)/python benchmarks/bench.py

lock:  ## Resolve requirements*.in into requirements.lock again
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate requirements-dev.in -o requirements.lock

clean:  ## Remove the virtual environment
	rm -rf $(VENV)

# uv comes by pip, into the environment itself; --compile-bytecode because every Ray worker imports everything.
$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing requirements.lock into $(VENV) (about 6 GB with CUDA libraries; a minute or two)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/drp init
	@touch $@
