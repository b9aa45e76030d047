# make demo: the main job on the built-in sample. make test: linter and tests. Both need only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKDIR ?= runs/demo

.PHONY: demo test lint docs tpu-compile clean

demo: $(VENV)/installed
	$(PY) -m ppa_jax.main --config=configs/ppa.py:demo --workdir=$(WORKDIR)

test: $(VENV)/installed-test
	$(PY) -m ruff check .
	$(PY) -m pytest --durations=10 --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

# The pages of docs/ with an API reference and a gallery, in runs/site; a broken link is an error.
docs: $(VENV)/installed-docs
	$(PY) -m mkdocs build

# Compiles the training step with the TPU compiler, without a TPU: memory and collectives per chip.
tpu-compile: $(VENV)/installed-tpu
	TPU_LIBRARY_PATH=$(VENV)/tpu/libtpu/libtpu.so $(PY) -m benchmarks.tpu_compile

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'ppa_jax needs Python 3.11 or newer; give one: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt constraints.txt pyproject.toml setup.py | $(VENV)/bin/python
	$(PIP) --requirement requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/installed-test: requirements-test.txt $(VENV)/installed
	$(PIP) --requirement requirements-test.txt
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	touch $@

# Outside the environment: with libtpu in it, every program would look for a TPU when it starts.
$(VENV)/installed-tpu: $(VENV)/installed
	$(PIP) --no-deps --target $(VENV)/tpu libtpu==0.0.42
	touch $@

clean:
	rm -rf $(VENV) runs .ruff_cache
