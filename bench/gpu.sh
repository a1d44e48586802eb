#!/usr/bin/env bash
# The learner on a GPU: how much of its arithmetic a step uses, in how much memory, and whether bf16 packing and checkpointing
# change what is computed. Exits with 1 where a bound does not hold.
#
#   bench/gpu.sh            a 1.5B model, 8k packed tokens; takes one GPU and some minutes
#   bench/gpu.sh --smoke    the same code on the CPU with a tiny model; takes seconds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-.venv/bin/python}" -m bench.gpu "$@"
