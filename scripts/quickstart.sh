#!/usr/bin/env bash
# The whole path on two CPU cores: samples -> rows -> train -> evaluate -> export -> report, in its own environment.
#   bash scripts/quickstart.sh [OUT]      results go to OUT (default quickstart-out), which is made anew each time
# Environment: PYTHON = the interpreter to use, VENV = where its environment is made (default .venv-quickstart).
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../quickstart-out}")
cd "$(dirname "$0")/.."
. scripts/venv.sh
venv=${VENV:-.venv-quickstart}
make_venv "$venv" ${PYTHON:-python3.11 python3.12 python3.13 python3}
echo "== installing medtune-jax and what it needs (first time: a few minutes)"
rm -rf build # setuptools would install what an earlier version left there
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt .
exec "$venv/bin/python" scripts/quickstart.py "$out"
