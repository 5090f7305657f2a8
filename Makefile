# make demo: train the embedded model and write its report.   make test: lint, types, all tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: demo test lint types clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/sdpo train emoji --output-dir $(RUN)

test: lint types
	$(BIN)/python -m pytest -q

lint: $(BIN)/.installed
	$(BIN)/ruff check src tests tools examples
	$(BIN)/ruff format --check src tests tools examples

types: $(BIN)/.installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
