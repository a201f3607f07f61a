# `make run` and `make test` do all of their own set-up. Everything else assumes one of them has run, or runs it.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-bench engines run check test test-slow lint format types layers sim mutate docs lock clean
.PHONY: bench bench-failover bench-flood bench-discovery bench-cluster bench-patterns bench-backup

PYTHON := .venv/bin/python
WORKERS ?= $(shell echo $$(($$(nproc) * 3 / 2)))# tests wait a third of their time: for engines, for deadlines
PYTEST := $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal
SEEDS ?= 20000
ARGS ?=
unexport PYTHONDONTWRITEBYTECODE # where it is set, every process that a test starts would compile the program anew

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## engines, Python environment, packages
	@tools/setup run

setup-test: ## what the tests need, too: clients such as aws, a linter, PostgreSQL, a browser
	@tools/setup test

setup-bench:
	@tools/setup bench

engines: ## try again to install the engines that are missing
	@tools/setup engines

run: setup ## serve on 127.0.0.1:8379 in the foreground (ARGS="--auth open" …)
	@exec .venv/bin/cachekeep up --build-engines $(ARGS)

check: lint ## what a minute can tell: style, rules, operations, wire, 40 seeds
	$(PYTEST) tests/plan tests/scenarios tests/services tests/wire
	$(PYTHON) -m cachekeep.sim --seeds 16
	$(PYTHON) -m cachekeep.sim --cluster --seeds 12
	$(PYTHON) -m cachekeep.sim --switch --seeds 12

test: setup-test ## the whole suite (ARGS="-k name" …)
	@exec $(PYTEST) --durations=20 $(ARGS)

test-slow: setup-test ## also the clients that take minutes (Go, Java, Ansible)
	@CACHEKEEP_TEST_SLOW=1 exec $(PYTEST) --durations=20 $(ARGS)

lint: setup-test ## style, and the house in order
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTHON) -m tools.tidy

format: setup-test ## put the style right
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: setup-test ## mypy --strict
	.venv/bin/mypy

layers: setup-test ## imports point down only
	.venv/bin/lint-imports
	cd packages/cachekeep-patterns && ../../.venv/bin/lint-imports

bench: setup-bench ## create time, throughput, listing, footprint; ratios against bare servers
	$(PYTHON) -m benchmarks.bench $(ARGS)

bench-failover bench-flood bench-discovery bench-cluster bench-patterns bench-backup: bench-%: setup-bench
	$(PYTHON) -m benchmarks.$* $(ARGS)

sim: setup-test ## many seeds of the simulated world (SEEDS=20000): without cluster mode, with it, and from one to the other
	$(PYTHON) -m cachekeep.sim --seeds $(SEEDS) $(ARGS)
	$(PYTHON) -m cachekeep.sim --cluster --seeds $(SEEDS) $(ARGS)
	$(PYTHON) -m cachekeep.sim --switch --seeds $(SEEDS) $(ARGS)

mutate: setup-test ## change the code in one place after another and see whether tests notice (ARGS="plan --survivors" …)
	$(PYTHON) -m tools.mutate $(or $(ARGS),plan control links --write)

docs: setup-test ## write docs/reference again from the code, and the index of decisions
	$(PYTHON) -m tools.reference $(ARGS)

lock: ## choose the newest versions that pyproject.toml allows and pin them (needs uv)
	@tools/lock

clean: ## remove what set-up and the tools have made in this checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .mutation dist build
