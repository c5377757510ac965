# make demo: find a weight-free network on real data and evaluate it.
# make test: check style, types and behaviour.
# make sanitize: all tests of the ops on builds under sanitizers; takes long.
# All make their own virtual environment in .venv on the first run. PYTHON names the interpreter to make it with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h csrc/cuda/*.cu csrc/cuda/*.h)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(CXX_SOURCES)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test style sanitize clean

demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/fastbin search digits --out runs/demo
	$(BIN)/fastbin eval runs/demo/network.safetensors digits

test: style build/triton-3.6/triton
	FASTBIN_TEST_TRITON=build/triton-3.6 $(BIN)/python -m pytest -n auto --dist loadfile

# The oldest Triton that fastbin runs with, for the tests that compile with it beside the installed one.
build/triton-3.6/triton: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target build/triton-3.6 triton==3.6.0

style: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(wildcard tests/*.cpp tests/cuda_emulation/*.* tests/cuda_emulation/cuda/*.h)

sanitize: $(VENV)/installed-dev
	$(BIN)/python -m tests.sanitize

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
