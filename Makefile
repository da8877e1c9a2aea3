PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# Bytecode is kept even where the shell says not to: a dozen processes import torch, transformers and vLLM, and without
# it each of them compiles every file anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup lint style types types-of-benchmarks layers check test test-all soak gpu-check demo docs lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: requirements/cpu.lock requirements/installer.lock pyproject.toml scripts/bootstrap.py
	@$(PYTHON) scripts/bootstrap.py

setup: .venv/.ready ## make .venv: the pinned packages and this project
	@:

lint: setup ## format, style, types and layers
	@rm -rf build/lint && $(BIN)/python setup.py -q build_py --build-lib build/lint  # under the installed names
	@$(MAKE) -s -k -j2 -O style types types-of-benchmarks layers

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p raylign

types-of-benchmarks:
	$(BIN)/mypy --explicit-package-bases --cache-dir .mypy_cache/benchmarks benchmarks

layers:
	cd build/lint && ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache

check: lint ## lint and the quick unit tests, under two seconds each (no GPU)
	$(BIN)/python scripts/two_lanes.py --unit -m "not slow and not thorough and not gpu"

test: lint ## lint, all unit tests and the system tests: real Ray, vLLM and DeepSpeed on CPU
	$(BIN)/python scripts/two_lanes.py -m "not thorough and not gpu"

test-all: lint ## everything `make test` runs, and what is long by nature: whole matrices, soak runs (over an hour)
	$(BIN)/pytest tests/unit tests/system -m "not gpu"

SEED ?= 7
FAULTS ?= 60
STEPS ?= 240

soak: setup ## a run under seeded faults, then the same without faults (twenty minutes; SEED, FAULTS and STEPS may be given)
	$(BIN)/python -m tests.soak.soak --seed $(SEED) --faults $(FAULTS) --steps $(STEPS) --folder $$(mktemp -d)/soak

gpu-check: ## does this machine's GPU compute what the CPU does, and how fast (ten minutes; needs a card)
	$(BIN)/raylign doctor --gpu

demo: setup ## train a small model on CPU, from feedback to report (under eight minutes)
	$(BIN)/raylign demo

docs: setup ## build the documentation as a site, build/site/index.html; its packages go into .venv
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --require-hashes -r requirements/docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

lock: setup ## resolve requirements/cpu.in into requirements/cpu.lock again
	$(BIN)/python scripts/lock.py

clean: ## remove what builds, tests and tools leave behind (not .venv, not runs/)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
