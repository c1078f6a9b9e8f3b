# `make demo` and `make test` work on a machine that has only Python >= 3.10 and a C compiler.
# Options of pytest or of `focalstream demo` go in ARGS, another interpreter in PYTHON: make test ARGS="-k shards" PYTHON=python3.13
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Set in many container images. Without compiled files each process compiles all of torch anew: four seconds, hundreds
# of times in the tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo web test test-quick soak lint format clean

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "    make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## the whole path in a few minutes; ends with a page to listen to, demo/index.html
	$(BIN)/focalstream demo --out demo $(ARGS)

web: $(VENV)/.installed-dev  ## the demo that runs in a browser, as a static folder, web/; fetches onnxruntime-web (33 MB) once
	rm -rf web
	$(BIN)/focalstream export-web web $(ARGS)

# One process a core, each with one thread: twice as fast on two cores as one process with two. Each begins with a half
# of the tests in their order, so that most fixtures (servers, browsers, trained models) are made once and not twice.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: lint  ## everything that CI runs, under ten minutes on two cores
	$(PYTEST) -m "not soak" $(ARGS)

test-quick: lint  ## ruff, mypy and the quick tests, about two minutes
	$(PYTEST) -m "not slow and not soak" $(ARGS)

soak: $(VENV)/.installed-dev  ## the longest tests, which CI leaves out: minutes
	$(PYTEST) -m soak $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Pinned, because a bare requirement of torch could bring another build with gigabytes of GPU packages. Python compiles
# what is imported when it is: compiling all of torch takes longer than the rest of the installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch -e ".[metrics]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

clean:  ## remove the virtual environment and the demos
	rm -rf $(VENV) demo web
