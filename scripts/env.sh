# Shared by the scripts beside it, sourced with the extras to install: source scripts/env.sh cpu,dev
# Leaves: cwd = repository root, PATH starts with .venv/bin, onnxprune installed editable.
# Installs only when something changed, so a second call takes no time. PYTHON=... picks the interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -t 1 ] || export NO_COLOR=1
unset PYTHONPATH PYTHONHOME # only what .venv holds counts

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

make_venv() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if usable "$candidate"; then
            echo "+ $candidate -m venv .venv" >&2
            "$candidate" -m venv --clear .venv
            return
        fi
        [ -z "${PYTHON:-}" ] || break
    done
    echo "error: ${PYTHON:-no python3 on PATH} is not a Python >= 3.11 with venv and pip" >&2
    echo "hint: install one, or name it: PYTHON=/path/to/python3 $0" >&2
    exit 4
}

# What an installation depends on. The path is part of it because the console script holds it.
fingerprint() {
    {
        pwd
        cat pyproject.toml CMakeLists.txt onnxprune/__init__.py
        find ort_ops -type f | LC_ALL=C sort | xargs cat
    } | cksum
}

installed() { # with at least these extras: "cpu" is also there when "cpu,dev" was installed
    local stamp
    for stamp in .venv/onnxprune-*"$1"*.stamp; do
        [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint)" ] || return 0
    done
    return 1
}

.venv/bin/python -c '' 2>/dev/null || make_venv
export PATH="$PWD/.venv/bin:$PATH"
if ! installed "$1"; then
    echo "+ pip install -e '.[$1]'" >&2
    python -m pip install --quiet --disable-pip-version-check --no-input -e ".[$1]"
    fingerprint >".venv/onnxprune-$1.stamp"
fi
