# make demo     train the embedded model and write its report
# make test     lint, types, layers, all tests, in two processes (WORKERS=4: in four)
# make test-minimum   tests with the oldest versions that pyproject.toml accepts, on Python 3.11
# make layers   check that imports only go down the layers (pyproject.toml, [tool.importlinter])
# make audit    list known vulnerabilities of the installed packages; needs a network
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VENV_MINIMUM ?= .venv-minimum
RUN ?= runs/demo
WORKERS ?= 2
# Without the golden numbers, which were stored with the versions of constraints.txt, and what the versions do not touch.
TESTS_MINIMUM ?= tests/unit tests/families tests/integration/test_run.py tests/integration/test_sharding.py

.PHONY: demo test test-minimum lint types layers audit clean

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'sdpo needs Python 3.11 or newer: name one, as in make PYTHON=python3.11' >&2; exit 2; }
endef

$(BIN)/.installed: pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/sdpo train emoji --output-dir $(RUN)

test: lint types layers
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

$(VENV_MINIMUM)/.installed: pyproject.toml constraints-minimum.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV_MINIMUM)
	$(VENV_MINIMUM)/bin/python -m pip install --quiet --constraint constraints-minimum.txt torch
	$(VENV_MINIMUM)/bin/python -m pip install --quiet --constraint constraints-minimum.txt --editable . hypothesis pytest
	touch $@

test-minimum: $(VENV_MINIMUM)/.installed
	$(VENV_MINIMUM)/bin/python -m pytest -q $(TESTS_MINIMUM)

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
	rm -rf $(VENV) $(VENV_MINIMUM) runs
