# make demo     train the embedded model and write its report
# make test     lint, types, layers, all tests, in two processes (WORKERS=4: in four)
# make layers   check that imports only go down the layers (pyproject.toml, [tool.importlinter])
# make audit    list known vulnerabilities of the installed packages; needs a network
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
WORKERS ?= 2

.PHONY: demo test lint types layers audit clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/sdpo train emoji --output-dir $(RUN)

test: lint types layers
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(BIN)/.installed
	$(BIN)/ruff check src tests tools examples
	$(BIN)/ruff format --check src tests tools examples

types: $(BIN)/.installed
	$(BIN)/mypy

layers: $(BIN)/.installed
	$(BIN)/lint-imports

audit: $(BIN)/.installed
	$(BIN)/python tools/audit.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) runs
