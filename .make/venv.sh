#!/bin/sh
# Creates the virtual environment DIR with a Python that is new enough.
# usage: venv.sh DIR      PYTHON=/path/to/python chooses the interpreter
set -u
dir=$1

# 3.11 comes first because the pinned versions were resolved and tested with it.
[ -n "${PYTHON:-}" ] && set -- "$PYTHON" ||
    set -- python3.11 python3.12 python3.13 python3.14 python3 python
for python; do
    # Running it is the only sure test: a version manager's shim may exist and yet lead nowhere.
    "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
done
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is needed${PYTHON:+, and $PYTHON is not}:" \
        "install one, or name it with 'make PYTHON=/path/to/python3.11'." >&2
    exit 1
fi

# A half-built environment would look finished to make.
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

echo "Creating $dir with $("$python" --version)" >&2
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv --clear "$dir" || exit 1
elif "$python" -m pip --version >/dev/null 2>&1; then
    # Debian and Ubuntu keep ensurepip in a package of its own; pip can put itself there as well.
    "$python" -m venv --clear --without-pip "$dir" &&
        "$python" -m pip --python "$dir/bin/python" install -q pip || exit 1
else
    echo "$python cannot create virtual environments:" \
        "install pip for it (on Debian or Ubuntu 'apt-get install python3-venv')." >&2
    exit 1
fi
trap - EXIT
