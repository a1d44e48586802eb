#!/usr/bin/env bash
# An environment of its own with TRL, for `medr3 bench learner --peer ENV` and `medr3 bench end-to-end --peer ENV`:
#
#   bench/peers/trl.sh ENV
#
# TRL brings transformers of its own choice; torch is the one that this project pins, so that both sides run the same kernels.
set -euo pipefail

env=${1:?"which folder is the environment to be made in? bench/peers/trl.sh ENV"}
python=${PYTHON:-python3.11}

"$python" -m venv "$env"
"$env/bin/python" -m pip install --quiet uv
find_links=(${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"})
"$env/bin/uv" pip install --quiet --compile-bytecode --python "$env/bin/python" "${find_links[@]:---torch-backend=cpu}" "torch==2.13.0+cpu" "trl>=1.16,<2"
"$env/bin/python" -c 'import torch, transformers, trl; print("trl", trl.__version__, "transformers", transformers.__version__, "torch", torch.__version__)'
