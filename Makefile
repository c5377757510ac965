# make demo: find a weight-free network on real data and evaluate it.
# make test: check style, types and behaviour.
# Both make their own virtual environment in .venv on the first run. PYTHON names the interpreter to make it with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test style clean

demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/fastbin search digits --out runs/demo
	$(BIN)/fastbin eval runs/demo/network.safetensors digits

test: style
	$(BIN)/python -m pytest

style: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h tests/*.cpp)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: $(SOURCES) | $(BIN)/python
	$(INSTALL) -e ".[test,dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist runs
