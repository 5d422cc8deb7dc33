#!/usr/bin/env bash
# Every check: style, types, tests. CI runs this.
#   bash scripts/test.sh          the fast tier
#   bash scripts/test.sh --all    also the slow tier, and the fast tier on Python 3.12 where one is found
# Environment: PYTHON = the interpreter to use, VENV = where its environment is made (default .venv-test).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
case "${1:-}" in
"") all=false ;;
--all) all=true ;;
*) echo "usage: bash scripts/test.sh [--all]" >&2 && exit 2 ;;
esac

# install FOLDER: the package as it stands here (editable), what it needs, and what the tests need.
install() {
    echo "== installing into $1 (first time: a few minutes)"
    # torch first and alone, so that nothing else chooses its build.
    "$1/bin/python" -m pip install -qq --disable-pip-version-check torch==2.13.0
    "$1/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools -e ".[test]"
}

# Two processes, a file at a time: most tests use one core, and files share what is slow to make.
two=(-n 2 --dist loadfile --no-loadscope-reorder)
venv=$(realpath -m "${VENV:-.venv-test}")
make_venv "$venv" ${PYTHON:-python3.11 python3.12 python3.13 python3}
install "$venv"
export PATH="$venv/bin:$PATH" JAX_PLATFORMS=cpu
echo "== ruff and mypy"
ruff check .
ruff format --check .
mypy
if $all && python312=$(find_python python3.12 ~/.pyenv/versions/3.12.*/bin/python 2>/dev/null); then
    make_venv "$venv-3.12" "$python312"
    install "$venv-3.12"
    echo "== fast tier on Python 3.12"
    "$venv-3.12/bin/python" -m pytest "${two[@]}" -m "not slow"
fi
if $all; then
    echo "== both tiers"
    python -m pytest "${two[@]}"
else
    echo "== fast tier"
    python -m pytest "${two[@]}" -m "not slow"
fi
