# `make` alone lists what there is. Everything runs in .venv, which `make install` makes.
#
#   make install PYTHON=python3.12       with another Python
#   make test ARGS='-k retention'        what a target runs gets ARGS
#
# On Linux, pip's default torch brings CUDA along; PIP_EXTRA_INDEX_URL can name PyTorch's own index of CPU builds.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check peers bench chaos clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-9s %s\n' "$$name" "$$text"; done

install: .venv/.installed  ## make .venv with all that demo, tests and checks need

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("raytuner needs Python 3.11 or newer; \
	$(PYTHON) is " + sys.version.split()[0] + ". Say which: make install PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: install  ## tune a small torch network on handwritten digits; kill it and run it again: it goes on
	$(BIN)/python examples/digits_bohb.py $(ARGS)

# The process that has all tests on a real Ray mostly waits: hence one more than there are cores.
test: install  ## the quick suite, a process for each core and one more (ARGS=-n0: in one)
	$(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) $(ARGS)

check: install  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

peers: .venv/bench/.installed  ## the benchmark's own environment: what Ray's BOHB needs

.venv/bench/.installed: benchmarks/peers.txt constraints.txt .venv/.installed
	@test -x .venv/bench/bin/python || $(PYTHON) -m venv .venv/bench
	.venv/bench/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@

bench: install peers  ## measurements beside peers
	@set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do \
		echo "$$file"; $(BIN)/python "$$file" $(ARGS); done

chaos: install  ## long runs with injected faults
	$(BIN)/python -m pytest -m chaos --ignore tests/test_replay.py $(ARGS)
	$(BIN)/python -m pytest -n auto -m chaos tests/test_replay.py $(ARGS)
	$(BIN)/python -m pytest -n auto --hypothesis-profile=chaos tests/schedulers tests/test_study_machine.py $(ARGS)

clean:  ## remove what tools left behind; neither .venv nor results
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
