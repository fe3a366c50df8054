# `make` alone says what there is. Every target first makes .venv from uv.lock; Python 3.11 with pip is all it needs.

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.synced
UV_VERSION = $(shell sed -n 's/.*"uv==\([0-9.]*\)".*/\1/p' pyproject.toml)

# What the demo, the benchmarks and pytest are told besides: make demo ARGS=--json, make test ARGS='-k cursor -x'.
ARGS ?=

# This project's environment and no other that the caller may stand in; no interpreter is ever downloaded.
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV
# The tests start some thousand processes of ours. Each would compile all that it imports, and take twice the time to start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo compose-demo test soak test-kernels test-deploy fuzz check kernel-matrix bench proto format

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## move a running process's memory by its dirty pages alone, and compare every byte (needs root)
	@$(BIN)/python -m wetink_client.demo $(ARGS)

compose-demo: ## start collector, agent and a workload in containers, and ask what is dirty (needs a Docker engine)
	@deploy/compose-demo

# Two modules at a time: many tests wait more than they work.
test: $(STAMP) ## run all tests; what the machine lacks is skipped by name
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

# The tests of make test that are marked soak, each for as long as its bug may need; ARGS='-k spool' for some of them.
soak: $(STAMP) ## run the tests that find what is rare, for longer than make test does (root, an hour or more)
	WETINK_SOAK=1 $(BIN)/pytest -m soak --timeout 3600 $(ARGS)

# Emulated, so it takes about half an hour; ARGS='--only soft-dirty -- -k random' for some of it.
test-kernels: $(STAMP) ## run the kernel tests on other kernels, emulated; a line for each
	@$(BIN)/python -m tests.kernel.vm.kernels $(ARGS)

# In an engine of its own, from a base made with debootstrap: some minutes, and with WETINK_DOCKER=DIR less the next time.
test-deploy: $(STAMP) ## build the images and run them, with compose and as a sidecar (needs root, Docker, debootstrap)
	WETINK_REQUIRE=docker,kernel,root $(BIN)/pytest tests/deploy $(ARGS)

# ARGS='--seconds 600 sealed-batch' for some of it. Its fuzzer is installed beside what the lock gives all others.
fuzz: $(STAMP) ## try hostile input on everything that reads any, a minute each
	$(BIN)/uv sync --frozen --all-extras --group fuzz --inexact --quiet
	@$(BIN)/python -m tests.fuzz $(ARGS)

check: $(STAMP) ## run the conventions: style, types, contract, layers, kernel headers
	$(BIN)/pytest tests/conventions $(ARGS)

kernel-matrix: $(STAMP) ## run the rows of the kernel matrix and write docs/kernel-matrix.md (needs root)
	@$(BIN)/python -m tests.kernel.matrix.page $(ARGS)

bench: $(STAMP) ## measure, as JSON lines with ratios
	@$(BIN)/python -m tests.bench $(ARGS)

# ARGS=--release keeps the contract of a version that is to be tagged, for the tests of later ones.
proto: $(STAMP) ## generate the Python modules of the contract again
	PATH="$(BIN):$$PATH" $(BIN)/python protos/generate.py $(ARGS)

format: $(STAMP) ## lay out Python and .proto files
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/buf format --write

$(STAMP): uv.lock pyproject.toml hatch_build.py $(wildcard agent/wetink_agent/*.[ch]) | $(VENV)/bin/uv
	$(BIN)/uv sync --frozen --all-extras
	@touch $@

# uv is in the lock as well, so this runs once. A .venv that stands is kept; what it lacks is added.
$(VENV)/bin/uv:
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
		python=; \
		for name in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do \
			if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "wetink needs Python 3.11 or newer, and no python3 on the PATH is one." >&2; exit 1; \
		fi; \
		if ! "$$python" -c 'import ensurepip' 2>/dev/null; then \
			echo "$$python has no pip for new environments (on Debian: apt-get install python3-venv)." >&2; exit 1; \
		fi; \
		"$$python" -m venv $(VENV); \
	elif ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if ! $(BIN)/python -m ensurepip --default-pip >/dev/null 2>&1; then \
			echo "$(VENV) has no pip and cannot get one: remove $(VENV) and try again." >&2; exit 1; \
		fi; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
