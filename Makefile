# Every command of the project. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test bench mutants proof check format lock docs clean

help: ## List the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## PostgreSQL to Iceberg on S3 under a live workload, then proof (ARGS="--keep", "--report FILE")
	@$(BIN)/lakehouse demo $(ARGS)

test: $(READY) ## Check the code, then run every test on real servers (ARGS="-k name" for some)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

bench: $(READY) ## Measure every part and write docs/benchmarks.md (ARGS="--only PART", "--rows 200000")
	@$(BIN)/python -m tests.bench $(ARGS)

mutants: $(READY) ## Plant each defect of docs/correctness.md; fail unless tests catch them all (ARGS="--list")
	@$(BIN)/python -m tests.mutants $(ARGS)

proof: $(READY) ## Property and crash suites at full size, with new seeds (ARGS="--runs 10", "--minutes 20")
	@$(BIN)/python -m tests.proof $(ARGS)

check: $(READY) ## Only the static checks: ruff, mypy, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## Format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

docs: $(READY) ## Write docs/tables.md from the contracts
	@$(BIN)/lakehouse contract docs > docs/tables.md

lock: $(READY) ## Resolve dependencies again into requirements.lock
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --extra dev --extra demo \
	  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --output-file requirements.lock pyproject.toml

clean: ## Remove the environment and caches
	rm -rf $(VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed; $(PYTHON) is another. Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
