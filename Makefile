# The two commands of the README are `make demo` and `make test`. Both install first, once.

VENV ?= .venv
JOBS ?= 2
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL = help
STACK_ENV ?=
STACK = $(BIN)/python -m infra.stack
.PHONY: help install demo rehearsal reproduce test soak stack stack-stop stack-status stack-test stack-faults check audit image-test bench bench-task bench-ingest bench-selection format clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "t2v needs Python 3.11 or newer; got $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,dev,stack]'
	@touch $(STAMP)

install: $(STAMP)  ## make the virtual environment and install t2v with all extras

demo: $(STAMP)  ## the main job on real data; a second time it does nothing
	$(BIN)/t2v run examples/demo.yaml

rehearsal: $(STAMP)  ## 1,558 tasks x 157 experts on small images; hours, goes on where it was
	$(BIN)/t2v fetch emoji stamps fashion-mnist
	$(BIN)/t2v run examples/rehearsal.yaml

reproduce: $(STAMP)  ## the paper's tables, figures and claims from the rehearsal's compact results
	$(BIN)/t2v reproduce --library rehearsal

test: $(STAMP)  ## all tests, in JOBS processes (2) of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

soak: $(STAMP)  ## tests of real servers that are too slow for every time: PostgreSQL, authentication, planted secrets, a lost machine, a light stack
	$(BIN)/python -m pytest -m soak tests --ignore=tests/stack/test_person.py --ignore=tests/stack/test_kills.py

stack: $(STAMP)  ## all servers on this machine, health-checked, with deployments; Ctrl-C stops them. STACK_ENV=FILE sets more
	$(STACK) up --env-file '$(STACK_ENV)'

stack-stop: $(STAMP)  ## stop the stack, from another shell
	$(STACK) down --env-file '$(STACK_ENV)'

stack-status: $(STAMP)  ## how each of its processes is
	$(STACK) status --env-file '$(STACK_ENV)'

stack-test: $(STAMP)  ## a stack of its own, used as a person would, in Chromium too; about 10 minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -m soak tests/stack/test_person.py

stack-faults: $(STAMP)  ## a stack of its own, each part killed in mid-run; about 20 minutes
	$(BIN)/python -m pytest -m soak tests/stack/test_kills.py

check: $(STAMP)  ## lint, format, types, import layers, compose and Kubernetes files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/infra -m "not server" --durations=0 --durations-min=5

audit: $(STAMP)  ## known vulnerabilities of the pinned packages; asks PyPI, so it needs a network
	$(BIN)/python infra/audit.py

image-test: $(STAMP)  ## what the images' builds and first runs do, in a fresh root file system, without an engine
	sh docker/image_test.sh cuda

bench: $(STAMP)  ## time and accuracy of engine, estimators, heads and distances; docs/benchmarks.md has the figures
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/convolutions.py
	$(BIN)/python benchmarks/fisher.py
	$(BIN)/python benchmarks/estimators.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/heads.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/diagonal.py
	$(BIN)/python benchmarks/distances.py
	$(BIN)/python benchmarks/depthwise.py

bench-task: $(STAMP)  ## one task of 10,000 images of 224 pixels, end to end
	$(BIN)/python benchmarks/task.py 10000

bench-ingest: $(STAMP)  ## packing and reading of 70,000 images; the paper's library at full size, from replicas
	$(BIN)/t2v fetch fashion-mnist
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python tests/replicas.py runs/replicas
	$(BIN)/python benchmarks/library.py runs/replicas

bench-selection: $(STAMP)  ## all selectors on the rehearsal's meta-tasks, from stored results; MODEL2VEC at full width
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/selection.py show
	$(BIN)/python benchmarks/selection.py scale

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and all runs
	rm -rf $(VENV) runs
