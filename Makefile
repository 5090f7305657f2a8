# make demo: train the embedded model and write its report.   make test: lint, types, all tests.
# make audit: known vulnerabilities of the installed packages, where there is a network.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: demo test lint types audit clean

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

audit: $(BIN)/.installed
	$(BIN)/python tools/audit.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) runs
