#!/usr/bin/env bash
# Makes .venv with everything in requirements.txt, once; prints the interpreter to use as its last line.
# An active environment, or a python3, that already has the packages is used as it is.
# Usage: scripts/setup.sh [--gpu]     --gpu: the optional packages of requirements-gpu.txt too
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
say() { echo "$@" >&2; }
fail() { say "error: $*"; exit 2; }

gpu=0
for word in "$@"; do
    case "$word" in
        --gpu) gpu=1 ;;
        *) fail "unknown option $word; scripts/setup.sh knows --gpu" ;;
    esac
done

venv="$root/.venv"
stamp="$venv/installed"
wanted="$(cksum < "$root/requirements.txt")$([[ $gpu = 1 ]] && cksum < "$root/requirements-gpu.txt" || true)"

if [[ $gpu = 0 ]]; then
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted"* ]]; then
        echo "$venv/bin/python"
        exit 0
    fi
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3; do
        if command -v "$python" > /dev/null && "$python" "$root/scripts/_bootstrap.py" 2> /dev/null; then
            command -v "$python"
            exit 0
        fi
    done
fi

# The first interpreter from 3.10 on that can make an environment.
base=""
for python in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
        base="$python"
        break
    fi
done
[[ -n "$base" ]] || fail "no Python 3.10 or newer with venv was found: install one (on Debian: python3 and python3-venv)"

exec 9> "$root/.setup.lock"
if command -v flock > /dev/null; then flock 9; fi
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted"* ]]; then  # another process did it while we waited
    echo "$venv/bin/python"
    exit 0
fi
say "setting up $venv with $("$base" --version) (a few minutes, once)"
rm -f "$stamp"
[[ -x "$venv/bin/python" ]] || "$base" -m venv --clear "$venv" >&2
lists=(-r "$root/requirements.txt")
[[ $gpu = 1 ]] && lists+=(-r "$root/requirements-gpu.txt")
"$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "${lists[@]}" >&2 \
    || fail "the packages could not be installed: see pip's message above, mend it and run ./scripts/setup.sh again"
echo "$wanted" > "$stamp"
say "ready: $venv"
echo "$venv/bin/python"
