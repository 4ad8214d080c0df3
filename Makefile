# `make demo` and `make test` are all a newcomer needs; each sets up .venv first.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Some containers forbid Python to keep what it has compiled: each start then takes half a minute instead of ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup deepspeed bytecode demo test test-multinode lint format typecheck bench gpu screenshots clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -e '.[dev]'
	touch $@

# DeepSpeed, for its tests. It has no wheel: it is built with what .venv has, without compiling its CUDA kernels.
deepspeed: setup
	$(BIN)/python -m pip install --quiet --no-compile wheel hjson msgpack ninja py-cpuinfo
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-compile --no-build-isolation -e '.[deepspeed]'

bytecode: setup
	$(BIN)/python -c "import florence2ner.demo, timm.optim"

demo: setup
	rm -rf florence2ner-demo
	$(BIN)/florence2ner demo florence2ner-demo

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

test-multinode: setup
	$(BIN)/python -m pytest tests/test_multinode.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.benchmarks

gpu: setup
	FLORENCE2NER_FIGURES=benchmarks/gpu.json $(BIN)/python -m pytest tests/gpu

# The pictures of the README and the guide; needs chromium.
screenshots: setup
	$(BIN)/python -m tests.screenshots

clean:
	rm -rf $(VENV) florence2ner-demo benchmarks build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
