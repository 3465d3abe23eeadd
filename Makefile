# One command per habit; each builds what it needs in .venv and can be run first.
#
#   make demo       the main job once, on real parts
#   make test       every test
#   make check      linter, types, import rules, generated files
#   make mutation   faults planted in the decision core, and how many of them the tests find
#   make bench      side-by-side measurements
#   make docs       write the generated pages again
#
# PYTHON chooses the interpreter: make test PYTHON=python3.13

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
NEWEST := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEWEST)' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What a person on this system would install; the tests import the other plugins' sources.
KEYCHAIN := $(if $(filter Darwin,$(shell uname -s)),macos,$(if $(filter Linux,$(shell uname -s)),linux,windows))
PLUGINS := plugins/runtime_llamacpp plugins/keychain_$(KEYCHAIN)
PLUGIN_FILES := $(shell find plugins -name '*.py' -o -name 'pyproject.toml' 2>/dev/null)

.PHONY: demo test check mutation bench docs lock clean

demo: $(VENV)/.demo
	@$(BIN)/companion demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/write_first_party.py --check
	$(BIN)/python tools/write_docs.py --check

# MODULES="oauth.token source" plants them there alone; MUTATION_JOBS says how many at once.
mutation: $(VENV)/.mutation
	$(BIN)/python tools/mutation.py $(MODULES)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/decisions.py

docs: $(VENV)/.dev
	$(BIN)/python tools/write_docs.py

# Pins without any index address; `uv` resolves for every supported system at once.
lock:
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -o constraints/dev.txt constraints/dev.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -c constraints/dev.txt \
		-o constraints/run.txt constraints/run.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -c constraints/dev.txt \
		-o constraints/mutation.txt constraints/mutation.in

clean:
	rm -rf $(VENV)

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "companion needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c '$(NEWEST)' || { echo "companion needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "companion needs Python's venv module; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made constraints/run.txt pyproject.toml $(PLUGIN_FILES)
	$(PIP) install --require-hashes -r constraints/run.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) install --no-deps --no-build-isolation --force-reinstall ./plugins/runtime_llamacpp
	@touch $@

$(VENV)/.dev: $(VENV)/.made constraints/dev.txt pyproject.toml $(PLUGIN_FILES)
	$(PIP) install --require-hashes -r constraints/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) install --no-deps --no-build-isolation --force-reinstall $(addprefix ./,$(PLUGINS))
	@touch $@ $(VENV)/.demo

$(VENV)/.mutation: $(VENV)/.dev constraints/mutation.txt
	$(PIP) install --require-hashes -r constraints/mutation.txt
	@touch $@
