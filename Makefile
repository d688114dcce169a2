# Two commands for a newcomer: `make demo`, then `make test`. Each sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help setup demo demo-cluster test lint types unit pythons integration test-kind test-slow bench constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt scripts/setup
	@scripts/setup "$(PYTHON)" "$(VENV)"
	@touch $@

setup: $(STAMP) ## Make .venv with everything the project needs

demo: $(STAMP) ## Measure Python's standard library on local runners
	@FLAME_BACKEND=local $(PY) examples/census.py

demo-cluster: $(STAMP) ## The same program in a pod of a real cluster, on runner pods
	@$(PY) -m tests.cluster demo

test: lint types unit pythons integration ## Everything: lint, types, unit, property, integration
	@echo "make test: all parts passed"

lint: $(STAMP) ## ruff: rules and formatting
	@echo "== lint"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(STAMP) ## mypy, strict
	@echo "== types"
	@$(PY) -m mypy

unit: $(STAMP) ## Unit and property tests: no cluster, loopback only
	@echo "== unit and property tests"
	@$(PY) -m pytest tests --ignore=tests/integration

pythons: $(STAMP) ## Unit and property tests on every other Python that is here
	@scripts/pythons $(PY)

integration: $(STAMP) ## Tests on a real API server, kubelet and pods
	@echo "== integration tests (the first run builds Kubernetes, about ten minutes)"
	@$(PY) -m pytest tests/integration

test-kind: $(STAMP) ## The integration tests on a kind cluster with two workers (docs/kind.md)
	@echo "== integration tests on kind"
	@KUBETLS_TEST_PROVIDER=kind $(PY) -m pytest tests/integration

test-slow: $(STAMP) ## Tests that take many minutes (a token's whole life)
	@$(PY) -m pytest tests -m slow

bench: $(STAMP) ## Ratios beside peers and limits, in about four minutes
	@# A package has its bytecode once it is installed; a checkout may not.
	@$(PY) -m compileall -q kubetls flame_backend benchmarks
	@$(PY) benchmarks/identity.py
	@$(PY) benchmarks/client_import.py
	@$(PY) benchmarks/client_list.py
	@$(PY) benchmarks/pool.py --svg docs/benchmarks.svg
	@$(PY) benchmarks/runners.py --no-node

constraints: ## Take the newest versions of what the tests run with
	@scripts/renew "$(PYTHON)"

clean: ## Remove .venv and caches of this folder (never the user's cache folder)
	@rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info

-include tests/cluster/cluster.mk
