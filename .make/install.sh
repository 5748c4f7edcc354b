#!/bin/sh
# Installs into the virtual environment DIR: torch first, then what the other arguments name.
# usage: install.sh DIR PIP_ARGUMENT...
# TORCH_INDEX=URL takes torch from that package index, TORCH_INDEX= (empty) from the default one.
set -eu
python=$1/bin/python
shift
export PIP_DISABLE_PIP_VERSION_CHECK=1

# The default torch wheel for Linux brings several GB of CUDA libraries, of no use without a GPU.
# Only torch itself comes from the other index (--no-deps), so it can replace no other package.
cpu_index=https://download.pytorch.org/whl/cpu
if [ -z "${TORCH_INDEX+set}" ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    # Asked first, and briefly: pip itself would retry an index out of reach for minutes.
    # The alarm bounds the name look-up, which urlopen's timeout does not cover.
    if (
        exec "$python" -c '
import signal, sys, urllib.request
signal.alarm(6)
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=3).close()' $cpu_index
    ) 2>/dev/null; then
        TORCH_INDEX=$cpu_index
    else
        echo "$cpu_index is out of reach: taking torch from the default index." >&2
    fi
fi
if [ -n "${TORCH_INDEX:-}" ]; then
    echo "Installing torch from $TORCH_INDEX" >&2
    "$python" -m pip install -q --no-deps --index-url "$TORCH_INDEX" -c conf/constraints.txt torch
fi

echo "Installing the other packages; the first time this takes minutes (PIP_VERBOSE=1 shows them)" >&2
exec "$python" -m pip install -q "$@"
