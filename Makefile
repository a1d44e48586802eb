# make demo   train the tiny model through all phases on this machine
# make test   lint, unit tests, end-to-end tests

EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRA)
# The first interpreter that the accelerator stack has wheels for; PYTHON=… names another.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3 python,$(if $(shell \
	$(name) -c 'import sys; print((3, 11) <= sys.version_info[:2] < (3, 14) or "")' 2>/dev/null | grep True),$(name))))
# One thread per process: the processes of a test share the cores, and their threads would wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: venv demo test unit e2e long lint transcripts screenshots

venv: $(STAMP)

$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "make venv: no Python 3.11, 3.12 or 3.13 found: install one, or name it with PYTHON=…" >&2; exit 2; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make venv: $(PYTHON) cannot make an environment: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/uv || command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	$$(test -x $(BIN)/uv && echo $(BIN)/uv || echo uv) pip install --python $(BIN)/python \
		$(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",$(if $(filter cpu,$(EXTRA)),--torch-backend=cpu)) \
		--editable '.[$(EXTRA),test,dev]'
	@touch $@

# One GPU is enough: engine and learner share it, as they share the cores of a laptop.
demo: venv
	$(BIN)/medr3 train configs/demo.yaml $(if $(filter gpu,$(EXTRA)),rollout.engine.gpus=0.5 learner.gpus_per_worker=0.5)

test: lint unit e2e

unit: venv
	$(TEST) -n auto --maxprocesses 8 --dist loadfile -m "not e2e"

e2e: venv
	$(TEST) -m "e2e and not long"

# A cluster that grows, loses processes and nodes, and shrinks: too long for every change, and needs two cores to itself.
long: venv
	$(TEST) -s -m long

# docs/transcripts: what the commands of docs/operations.md say, typed and read anew.
transcripts: venv
	MEDR3_TRANSCRIPTS=1 $(TEST) -m e2e tests/e2e/test_cluster_story.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The pictures of docs/dashboard.md, from a run that has ended.
RUN ?= runs/demo
screenshots: venv
	$(BIN)/python docs/screenshots/take.py $(RUN)
