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

.PHONY: venv demo test unit e2e long bench chaos soak lint transcripts screenshots fuzz audit

venv: $(STAMP)

# Compiled once: where a process may not write beside the packages (a container, PYTHONDONTWRITEBYTECODE), each would compile them anew.
$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "make venv: no Python 3.11, 3.12 or 3.13 found: install one, or name it with PYTHON=…" >&2; exit 2; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make venv: $(PYTHON) cannot make an environment: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/uv || command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	$$(test -x $(BIN)/uv && echo $(BIN)/uv || echo uv) pip install --python $(BIN)/python --compile-bytecode \
		$(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",$(if $(filter cpu,$(EXTRA)),--torch-backend=cpu)) \
		--editable '.[$(EXTRA),test,dev]'
	@touch $@

# One GPU is enough: engine and learner share it, as they share the cores of a laptop.
demo: venv
	$(BIN)/medr3 train configs/demo.yaml $(if $(filter gpu,$(EXTRA)),rollout.engine.gpus=0.5 learner.gpus_per_worker=0.5)

test: lint unit e2e

unit: venv
	$(TEST) -n auto --maxprocesses 8 --dist loadfile -m "not e2e" --durations=15

e2e: venv
	$(TEST) -m "e2e and not long" --durations=30

# A cluster that grows, loses processes and nodes, and shrinks: too long for every change, and needs two cores to itself.
long: venv
	$(TEST) -s -m long

# Mutated samples of everything that reads outside bytes: a million cases take an hour of one core.
CASES ?= 1000000
SEED ?= 0
fuzz: venv
	OMP_NUM_THREADS=1 nice -n 15 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED) --state .fuzz.json --record docs/records/fuzz.md

# docs/transcripts: what the commands of docs/operations.md say, typed and read anew.
transcripts: venv
	MEDR3_TRANSCRIPTS=1 $(TEST) -m e2e tests/e2e/test_cluster_story.py

# 24 seeded faults on the real processes of small runs. The plan with every kind of fault: PLAN=configs/chaos/long.yaml
PLAN ?= configs/chaos/short.yaml
chaos: venv
	$(BIN)/medr3 chaos --plan $(PLAN) --seed $(SEED)

MINUTES ?= 30
soak: venv
	$(BIN)/medr3 chaos soak --minutes $(MINUTES)

# Known vulnerabilities of what is installed. The database is a folder, so that no build depends on a server: ADVISORIES=… names a
# checkout of github.com/pypa/advisory-database. Without one nothing is checked, and the line says so.
ADVISORIES ?=
audit: venv
	@if [ -n "$(ADVISORIES)" ]; then $(BIN)/python -m security.advisories "$(ADVISORIES)"; \
	else echo "audit: no database is at hand, nothing was checked: make audit ADVISORIES=FOLDER"; fi

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Every benchmark with short settings into one file: OUT=…. PEER names an environment that bench/peers/trl.sh made.
OUT ?= bench.json
bench: venv
	$(BIN)/medr3 bench all --short --out $(OUT) $(if $(PEER),--peer $(PEER))

# The pictures of docs/dashboard.md, from a run that has ended.
RUN ?= runs/demo
screenshots: venv
	$(BIN)/python docs/screenshots/take.py $(RUN)
