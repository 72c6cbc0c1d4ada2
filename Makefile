# `make demo` and `make test` install what they need into .venv and run. Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-tensorflow test-jax lint format benchmark clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/quickstart.py

test: lint test-tensorflow test-jax

test-tensorflow: $(VENV)/test.stamp
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 --dist worksteal

# The backend-neutral tests once more. XLA's optimisations would only make them slower here.
test-jax: $(VENV)/test.stamp
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m core

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/step_time.py --out benchmarks/results

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'kdtoolkit needs Python 3.11 to 3.13. Set it with: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/test.stamp: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
