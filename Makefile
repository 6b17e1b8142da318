# Needs Python 3.11 or later (with venv and pip) and make; nothing else.
# The distribution's own first: it is built with profile-guided optimisation, which makes a token cheaper by a tenth.
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do \
	$$each -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && exit; \
	done; echo python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
CODE := broker issuers policies demo deploy bench docs tests

.DEFAULT_GOAL := help
.PHONY: help demo cluster test lint bench soak lock clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/runtime  ## Set everything up and show the main job, on this machine alone, in under a minute
	@$(BIN)/python demo/run.py

cluster: .venv/runtime  ## Run two brokers, PostgreSQL, Redis and nginx on this machine, and kill across them
	@$(BIN)/python -m deploy.local

test: lint  ## Set everything up, check the code, and run all tests
	$(BIN)/python -m pytest -n auto --cov --cov-report=term

lint: .venv/dev  ## Check style, types and who imports whom
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev  ## Measure tokens per second, their latency, and the time from a kill to the last refusal
	@$(BIN)/python -m bench

soak: .venv/dev  ## Half an hour at 70 % of capacity, with a kill every second
	@$(BIN)/python -m bench soak

lock: .venv/dev  ## Pin the newest dependencies that pyproject.toml allows
	$(PIP) install uv
	$(BIN)/uv pip compile $(LOCKED) pyproject.toml requirements/build.in --output-file requirements/runtime.txt
	$(BIN)/uv pip compile $(LOCKED) --group dev pyproject.toml requirements/build.in --output-file requirements/dev.txt
LOCKED := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

clean:  ## Remove everything that was made here
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis .schemathesis .coverage .coverage.* htmlcov dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is exactly what the lock files pin; the project itself is linked, not copied. They are complete, so
# nothing is resolved again: older versions of pip would take the newest of a package that is needed with an extra.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.x ..." if sys.version_info < (3, 11) else 0)'
	@echo "Making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/runtime .venv/dev: .venv/%: requirements/%.txt pyproject.toml | .venv/bin/python
	@echo "Installing what $< pins"
	@$(PIP) install --require-hashes --no-deps -r $<
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
