# Everything runs in $(VENV), which is created on first use; only python3 with venv is needed.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# a file that stands for "these extras of this pyproject.toml are installed in the environment"
EXTRAS_demo := rtx,models
EXTRAS_test := test
# read by tests with its own loader; what it pins is years old
ALONE_test := trt-engine-explorer==0.1.5

.PHONY: setup env demo test test-fast lint bench triton-env clean

setup: $(VENV)/.installed-demo

# what the tests need, before anything is run
env: $(VENV)/.installed-test

# a real Triton server for the tests, with an environment of its own in .triton-env
triton-env: env
	$(PY) tests/triton/environment.py

demo: $(VENV)/.installed-demo
	$(PY) -m models.demo -o build-demo

test: $(VENV)/.installed-test
	$(PY) -m pytest -n auto --dist loadfile

test-fast: $(VENV)/.installed-test
	$(PY) -m pytest -n auto --dist loadfile -m "not slow"

lint: $(VENV)/.installed-test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.installed-test
	$(PY) benchmarks/sparsity.py
	$(PY) benchmarks/permute.py

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS_$*)]'
	$(if $(ALONE_$*),$(PY) -m pip install --quiet --disable-pip-version-check --no-deps $(ALONE_$*))
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "trtsparse needs Python 3.10 or newer; use: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .triton-env build-demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
