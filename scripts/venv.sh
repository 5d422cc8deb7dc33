# Sourced by the other scripts: a Python that is new enough, and a virtual environment made with it.

# Prints the first command among the arguments that is Python 3.11 or newer; fails where none is.
find_python() {
    local candidate
    for candidate in "$@"; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or newer with venv among: $*. Install one (on Debian and Ubuntu: python3.11-venv), or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
}

# make_venv FOLDER PYTHON...: makes the environment unless it is there already.
make_venv() {
    local folder=$1 python
    shift
    if [ ! -x "$folder/bin/python" ] || [ ! -f "$folder/.made" ]; then
        python=$(find_python "$@")
        echo "== making $folder with $("$python" --version)"
        "$python" -m venv "$folder"
        touch "$folder/.made"
    fi
}
