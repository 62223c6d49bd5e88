# Osteon's everyday commands: `make` or `make help` lists them.
# Everything is installed into $(VENV) from lock files with hashes. A stamp file in $(VENV) marks what is installed and is
# older than its lock file as soon as that changes, so that running a target twice costs nothing.

VENV ?= .venv
TRAIN_VENV ?= .venv-train
FUZZ_VENV ?= .venv-fuzz
BIN := $(VENV)/bin
# Those that take long come first, so that the short ones fill the rest: a file is run by one process.
TESTS ?= tests/faults tests/acceptance tests/interop tests/integration tests/unit
PYTEST_ARGS ?=
# Test files that run side by side: one more than two cores, since many wait for the servers that they started. JOBS=0 for
# one after the other in one process, as a debugger wants it.
JOBS ?= 3
FUZZ_SECONDS ?= 60
RUNS ?= 20
DEMO_ARGS ?=
TRAIN_ARGS ?= fit runs/lite0

# The real tools that tests/interop sends with, receives with and is judged by; strace shows the order of system calls,
# chromium looks at the console, iproute2 makes the network namespaces of the fault tests.
PEERS := dcmtk orthanc orthanc-dicomweb dicom3tools libpixelmed-java default-jre-headless chromium strace iproute2

# Wheels only: nothing that comes from outside runs code while it is installed.
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes
PROJECT = -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install web dev demo test lint format bench faults fuzz lock peers train clean distclean interpreter

help: ## List these commands
	@printf 'Osteon: a DICOM node that reads bone X-rays.\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables: PYTHON=python3.13 (3.11 to 3.13), VENV=%s, TESTS="tests/unit", PYTEST_ARGS="-k spool -x", JOBS=0,\n' '$(VENV)'
	@printf '           DEMO_ARGS="--keep", TRAIN_ARGS="--help", FUZZ_SECONDS=600, RUNS=200, UPGRADE=1 (with lock: newest versions)\n'

install: interpreter $(VENV)/.installed-node ## Set up the environment for a node and the demo

web: interpreter $(VENV)/.installed-web ## Set up the environment for a node with its console in the browser

dev: interpreter $(VENV)/.installed-dev ## Set up the environment with the development tools as well

demo: install ## Send real radiographs to a node on this machine and show the reports that come back
	@$(BIN)/osteon demo $(DEMO_ARGS)

test: dev ## Run the tests (all but the benchmarks)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS) $(PYTEST_ARGS)

lint: dev ## Check style, types, floors, docker-compose.yml and Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile

format: dev ## Bring the Python files into our style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev ## Measure: time from the last C-STORE answer to the report, receive rate beside storescp and Orthanc
	@$(BIN)/python -m pytest tests/benchmarks $(PYTEST_ARGS)

faults: dev ## Break everything at random moments, RUNS=20 times with new seeds; what failed is kept in build/chaos
	@$(BIN)/python -m pytest tests/faults/test_chaos.py --chaos-runs $(RUNS) $(PYTEST_ARGS)

fuzz: $(FUZZ_VENV)/.installed-fuzz ## Look for files and bytes that break the node (Linux on x86-64), for FUZZ_SECONDS=60
	@$(FUZZ_VENV)/bin/python -m tests.fuzz.fuzz_pixels $$(( ($(FUZZ_SECONDS) + 1) / 2 )) build/fuzz/pixels
	@$(FUZZ_VENV)/bin/python -m tests.fuzz.fuzz_receive $$(( ($(FUZZ_SECONDS) + 1) / 2 )) build/fuzz/receive

# The union of all extras and groups is resolved first; every lock file is then cut from it, so that they cannot disagree.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
CUT = $(COMPILE) --generate-hashes --no-annotate --constraints requirements/versions.txt --extra node --group build

lock: ## Resolve the dependencies anew into requirements/ (UPGRADE=1 for the newest versions)
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory dev
	$(COMPILE) $(if $(UPGRADE),--upgrade) --constraints requirements/constraints.in --all-extras --group dev --group fuzz \
		--output-file requirements/versions.txt
	$(CUT) --output-file requirements/node.txt
	$(CUT) --extra web --output-file requirements/web.txt
	$(CUT) --extra train --output-file requirements/train.txt
	$(CUT) --extra web --extra train --group dev --output-file requirements/dev.txt
	$(CUT) --group fuzz --output-file requirements/fuzz.txt

peers: ## Install the DICOM tools the interop tests use (Debian and Ubuntu; sudo unless root)
	@command -v apt-get >/dev/null || { echo 'make peers needs apt-get; elsewhere install yourself: $(PEERS)' >&2; exit 1; }; \
	missing=$$(for p in $(PEERS); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || echo $$p; done); \
	[ -n "$$missing" ] || { echo 'The peers are installed.'; exit 0; }; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	echo "Installing:" $$missing; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing || exit 1; \
	case " "$$missing" " in *orthanc*) \
		: 'Its package starts a server on port 4242; the tests start their own. One that was there before is left alone.'; \
		if [ -d /run/systemd/system ]; then $$sudo systemctl disable --now orthanc; \
		elif [ -x /etc/init.d/orthanc ]; then $$sudo /etc/init.d/orthanc stop; $$sudo update-rc.d orthanc disable; \
		fi >/dev/null 2>&1 || echo 'Note: the orthanc service could not be stopped; it listens on port 4242.' >&2 ;; \
	esac

train: $(TRAIN_VENV)/.installed-train ## Train: TRAIN_ARGS="fit runs/lite0" (TensorFlow, in an environment of its own)
	@$(TRAIN_VENV)/bin/python -m training $(TRAIN_ARGS)

clean: ## Remove caches and build output
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## Remove the environments as well
	rm -rf $(VENV) $(TRAIN_VENV) $(FUZZ_VENV)

# --- environments ---------------------------------------------------------------------------------------------------

SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Find an interpreter and make a virtual environment of it, unless a fit one is there already.
define make_venv
	@if $(1)/bin/python -c '$(SUPPORTED)' 2>/dev/null && $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
		touch $@; exit 0; fi; \
	for p in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$p -c '$(SUPPORTED)' 2>/dev/null; then python=$$p; break; fi; done; \
	[ -n "$$python" ] || { \
		echo 'Osteon needs Python 3.11, 3.12 or 3.13; tried: $(or $(PYTHON),python3 python3.13 python3.12 python3.11).' >&2; \
		echo 'Name another with: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; exit 1; }; \
	$$python -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	echo "Making $(1) with $$($$python --version)"; \
	$$python -m venv --clear $(1) && touch $@
endef

$(VENV)/.made:
	$(call make_venv,$(VENV))

$(TRAIN_VENV)/.made:
	$(call make_venv,$(TRAIN_VENV))

$(FUZZ_VENV)/.made:
	$(call make_venv,$(FUZZ_VENV))

$(VENV)/.installed-node: requirements/node.txt pyproject.toml | $(VENV)/.made
	@echo 'Installing the node into $(VENV) (about a minute the first time)'
	@$(BIN)/python $(PIP_INSTALL) -r requirements/node.txt
	@$(BIN)/python $(PROJECT)
	@touch $@

# web.txt and dev.txt hold all of node.txt, at the same versions: installing them installs the node as well.
$(VENV)/.installed-web: requirements/web.txt pyproject.toml | $(VENV)/.made
	@echo 'Installing the node and its console into $(VENV) (about a minute the first time)'
	@$(BIN)/python $(PIP_INSTALL) -r requirements/web.txt
	@$(BIN)/python $(PROJECT)
	@touch $(VENV)/.installed-node $@

$(VENV)/.installed-dev: requirements/dev.txt pyproject.toml | $(VENV)/.made
	@echo 'Installing the node and the development tools into $(VENV) (about a minute the first time)'
	@$(BIN)/python $(PIP_INSTALL) -r requirements/dev.txt
	@$(BIN)/python $(PROJECT)
	@touch $(VENV)/.installed-node $(VENV)/.installed-web $@

$(TRAIN_VENV)/.installed-train: requirements/train.txt pyproject.toml | $(TRAIN_VENV)/.made
	@echo 'Installing the node and TensorFlow into $(TRAIN_VENV) (a few minutes the first time)'
	@$(TRAIN_VENV)/bin/python $(PIP_INSTALL) -r requirements/train.txt
	@$(TRAIN_VENV)/bin/python $(PROJECT)
	@touch $@

$(FUZZ_VENV)/.installed-fuzz: requirements/fuzz.txt pyproject.toml | $(FUZZ_VENV)/.made
	@echo 'Installing the node and atheris into $(FUZZ_VENV) (about a minute the first time)'
	@$(FUZZ_VENV)/bin/python $(PIP_INSTALL) -r requirements/fuzz.txt
	@$(FUZZ_VENV)/bin/python $(PROJECT)
	@touch $@

# An environment keeps the interpreter it was made with: say so instead of ignoring another PYTHON.
interpreter:
ifdef PYTHON
	@ask='import sys; print("%d.%d" % sys.version_info[:2])'; \
	if [ -x $(BIN)/python ]; then \
		have=$$($(BIN)/python -c "$$ask"); want=$$($(PYTHON) -c "$$ask"); \
		[ "$$have" = "$$want" ] || { \
			echo "$(VENV) was made with Python $$have, PYTHON=$(PYTHON) is $$want: run 'make distclean' or add VENV=.venv$$want" >&2; \
			exit 1; }; \
	fi
endif
