# Needs Python 3.11 to 3.13, make and a network. Everything else is set up into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UV := 0.13.8
# Which tests stay together, and in which order, tests/conftest.py says.
SIDE_BY_SIDE := -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: help demo test quick check lint types docs gpu cpp cpp-sanitizers cpp-fuzz lock clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(READY)  ## the whole way on generated videos: runs/demo/report.html
	$(BIN)/flowless demo

test: $(READY)  ## every test that this machine can run
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

quick: $(READY)  ## the tests without the slow ones
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

check: lint types docs test  ## what CI runs: ruff, pyright, the documentation, tests

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## pyright
	$(BIN)/pyright

docs: $(READY)  ## the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Both run, whatever the other says; measuring comes first, so that there is a file even where the tests find no GPU. What
# tests/gpu/test_parts.py runs has then been run.
gpu: $(READY)  ## everything that needs a GPU: measurements into bench/results/gpu-CARD.json, then the GPU tests
	@$(BIN)/flowless bench gpu --out bench/results; measured=$$?; \
	FLOWLESS_REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu --ignore tests/gpu/test_parts.py; tested=$$?; \
	exit $$(( measured > tested ? measured : tested ))

# These need no .venv: a C++ compiler, and what they name where it is missing.
cpp:  ## the C++ library and its examples: built, tested, installed into build/cpp/install
	@$(PYTHON) scripts/cpp_build.py release

cpp-sanitizers:  ## its unit tests with address, undefined-behaviour and thread sanitizers; then cpp-fuzz
	@$(PYTHON) scripts/cpp_build.py sanitizers

cpp-fuzz:  ## the reader of manifests with 1,000,000 random inputs
	@$(PYTHON) scripts/cpp_build.py fuzz

# Bytecode is compiled here: where Python may not write it later, every process would compile PyTorch again, which takes longer than most tests.
$(READY): requirements/all.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "flowless needs Python 3.11, 3.12 or 3.13; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	@echo "flowless: making $(VENV) (once; about 7.5 GB and some minutes)"
	@$(PYTHON) -m venv $(VENV) || { echo "flowless: this Python cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@echo "flowless: installing uv $(UV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@echo "flowless: installing the pinned libraries of requirements/all.txt"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/all.txt
	@echo "flowless: installing flowless itself"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)
	@echo "flowless: ready"

EXTRAS := train export dali onnxruntime rtx live bench docs dev
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 -c requirements/constraints.in --generate-hashes --quiet
lock: $(READY)  ## pin every library again
	$(COMPILE) -o requirements/base.txt
	$(COMPILE) $(EXTRAS:%=--extra %) -o requirements/all.txt

clean:  ## remove what was set up and made
	rm -rf $(VENV) build runs *.egg-info
