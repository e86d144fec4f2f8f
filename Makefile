# Each target is what CI runs. Nothing but python3 (3.11 or newer) and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Options for the jobs below, as in: make run ARGS="--seconds 10 --tracing 3:6"
ARGS ?=

.PHONY: run test tools samples lint format bench bench-check bench-baseline bench-docs wheel-check clean

run: $(STAMP)
	@$(BIN)/dynftrace-emu run $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto $(ARGS)

# The programs that tests open our traces with (Debian packages, as root; an npm package).
tools: $(STAMP)
	@tests/install_tools.sh

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# The C samples of firmware/samples in the five ways gcc makes call sites, into build/samples.
samples:
	@command -v gcc >/dev/null || { echo "gcc is needed to build the samples" >&2; exit 1; }
	@$(MAKE) -s -C firmware/samples BUILD=$(CURDIR)/build/samples
	@ls build/samples

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# What tracing costs: make bench ARGS=--quick
bench: $(STAMP)
	@$(BIN)/dynftrace-emu bench $(ARGS)

# No mode may take more instructions than it did; bench-baseline says that what it takes now is right.
bench-check: $(STAMP)
	@$(BIN)/dynftrace-emu bench --only instructions --compare tests/bench/instructions.json $(ARGS)

bench-baseline: $(STAMP)
	@$(BIN)/dynftrace-emu bench --only instructions --json tests/bench/instructions.json

# The tables and the picture in docs/benchmark.md.
bench-docs: $(STAMP)
	@$(BIN)/dynftrace-emu bench --markdown docs/benchmark.md --plot docs/benchmark.svg $(ARGS)

# The wheel, installed apart from this tree, runs.
wheel-check: $(STAMP)
	@rm -rf build
	@$(BIN)/python tests/wheel_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "python3 3.11 or newer is needed; say which with PYTHON=..." >&2; exit 1; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
