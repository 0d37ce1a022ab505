# The commands of this project; `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lint format types layers collected bench faults faults-failpoints faults-selftest \
	security security-table audit secrets sbom fuzz proto proto-check lock clean
SHELL := /bin/bash

BIN := .venv/bin
export PATH := $(CURDIR)/.cache/bin:$(PATH)
# Hundreds of processes load the same modules: what one has compiled is there for all, whatever is the custom here.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest
# More than the two cores: most of what a test takes is waiting.
PYTEST_ARGS ?= -n 6 --dist worksteal
# The long cases work more than they wait.
SECURITY_ARGS ?= -n 3 --dist worksteal
# Contract tests wait more than they work.
CHECK_ARGS ?= -n 4 --dist worksteal

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/demo.stamp ## run a real experiment on this machine: no root, no server, no engine needed
	@$(BIN)/python examples/demo.py

test: ## everything, against real servers and a real engine (root installs the Debian packages)
	@.ci/packages
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint collected
	$(PYTEST) $(PYTEST_ARGS)

check: lint ## format, lint, types, layers, generated code, unit and contract tests
	$(PYTEST) $(CHECK_ARGS) tests/unit tests/contract

lint: format layers proto-check types

format: .venv/test.stamp
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet

types: .venv/test.stamp
	$(BIN)/mypy

layers: .venv/test.stamp
	$(BIN)/lint-imports

# Once for all processes that are to run them.
collected: .venv/test.stamp
	$(PYTEST) --collect-only --quiet >.cache/collected || { cat .cache/collected; exit 1; }

bench: .venv/test.stamp ## measure, and write what was measured
	$(BIN)/python -m bench

N ?= 40
BROKER ?= rabbitmq
faults: .venv/test.stamp ## break a whole site while it works: BROKER=rabbitmq|redis|sqs N=40 SEED=number
	@.ci/packages
	PYTHONPATH=tests $(BIN)/python -m faults --broker $(BROKER) --count $(N) $(if $(SEED),--seed $(SEED))

TIMES ?= 5
faults-failpoints: .venv/test.stamp ## kill a worker at each step of an attempt: BROKER=rabbitmq|redis|sqs TIMES=5
	@.ci/packages
	PYTHONPATH=tests $(BIN)/python -m faults --broker $(BROKER) --failpoints --times $(TIMES)

faults-selftest: .venv/test.stamp ## switch each protection off and see that the faults find it: ONLY=guard
	@.ci/packages
	PYTHONPATH=tests $(BIN)/python -m faults --broker $(BROKER) --self-test $(if $(ONLY),--only $(ONLY))

security: .venv/test.stamp ## every case of docs/security.md, the long ones too; known holes and secrets that were written down
	@.ci/packages
	$(PYTEST) $(SECURITY_ARGS) -m security_case
	@$(MAKE) --no-print-directory secrets audit

security-table: .venv/test.stamp ## write docs/security.md from the tests
	PYTHONPATH=tests $(BIN)/python -m services.security_table

audit: .cache/audit.stamp ## ask for known holes in what is shipped; requirements/waivers.toml has those that we live with
	PYTHONPATH=tests .cache/audit/bin/python -m services.audit requirements/wheel.txt requirements/image.txt

# Without the detectors that guess: they find every example of an address. The last line is for our own keys.
secrets: .cache/audit.stamp ## look for keys and tokens in what git tracks
	git ls-files -z | xargs -0 .cache/audit/bin/detect-secrets-hook \
		$(patsubst %,--disable-plugin %,KeywordDetector BasicAuthDetector Base64HighEntropyString HexHighEntropyString IPPublicDetector)
	! git grep -nE 'jobqueue-[a-z0-9-]+-private [A-Za-z0-9+/]{40}'

sbom: .cache/audit.stamp ## list what the wheel and the image bring along, as CycloneDX, in dist/
	@mkdir -p dist
	for what in wheel image; do .cache/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--mc-type library --output-reproducible --of JSON -o dist/jobqueue.$$what.cdx.json requirements/$$what.txt; done

SECONDS_EACH ?= 60
fuzz: .cache/fuzz.stamp ## feed every parser with what a fuzzer makes up: SECONDS_EACH=60 ONLY=target
	PYTHONPATH=tests .cache/fuzz/bin/python -m fuzz --seconds $(SECONDS_EACH) $(if $(ONLY),--only $(ONLY))

proto: .cache/proto.stamp ## generate jobqueue/wire from proto/
	.ci/proto

proto-check: .cache/proto.stamp
	.ci/proto --check

lock: ## choose the versions in requirements/ anew
	.ci/lock

clean: ## remove the virtual environment and what the commands cached here
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The tests' requirements hold the demo's, so that one environment serves both.
.venv/demo.stamp: requirements/demo.txt pyproject.toml .ci/venv
	.ci/venv .venv demo
	@touch $@

.venv/test.stamp: requirements/test.txt pyproject.toml .ci/venv
	.ci/venv .venv test
	@touch .venv/demo.stamp $@

.cache/proto.stamp: requirements/proto.txt .ci/venv
	.ci/venv .cache/proto proto
	@touch $@

.cache/audit.stamp: requirements/audit.txt .ci/venv
	.ci/venv .cache/audit audit
	@touch $@

.cache/fuzz.stamp: requirements/fuzz.txt pyproject.toml .ci/venv
	.ci/venv .cache/fuzz fuzz
	@touch $@
