#!/usr/bin/env bash
# Makes .venv with everything in requirements-dev.txt, once; prints the interpreter to use as its last line.
# An active environment, or a python3, that already has the packages is used as it is.
# Usage: scripts/setup.sh [--gpu] [--upstream] [--floor]
#   --gpu        the optional packages of requirements-gpu.txt too
#   --floor      .venv-floor instead, with the oldest versions that requirements.txt allows
#   --upstream   the submodule Qwen3-VL too (or look at the checkout that QWEN3VL_UPSTREAM names)
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
say() { echo "$@" >&2; }
fail() { say "error: $*"; exit 2; }
wanted() { cat "$root/requirements.txt" "$root/requirements-dev.txt" | cksum; }
is_complete() { [[ ! -e "$unfinished" && -f "$stamp" && "$(< "$stamp")" == "$(wanted)" ]]; }
has_packages() { command -v "$1" > /dev/null && "$1" "$root/scripts/_bootstrap.py" 2> /dev/null; }

quietly=(--quiet --disable-pip-version-check)
gpu=0 upstream=0 floor=0
for word in "$@"; do
    case "$word" in
        --gpu) gpu=1 ;;
        --upstream) upstream=1 ;;
        --floor) floor=1 ;;
        *) fail "unknown option $word; scripts/setup.sh knows --gpu, --upstream and --floor" ;;
    esac
done

venv="$root/.venv" resolution=highest
if [[ $floor = 1 ]]; then venv="$root/.venv-floor" resolution=lowest-direct; fi
stamp="$venv/installed"         # what the environment was made from; written last
unfinished="$venv/installing"   # there while packages are being put in: what a killed run leaves is not to be trusted

if [[ $upstream = 1 ]]; then
    tree="${QWEN3VL_UPSTREAM:-$root/Qwen3-VL}" entry="qwen-vl-finetune/qwenvl/train/train_qwen.py"
    if [[ ! -f "$tree/$entry" ]]; then
        [[ -z "${QWEN3VL_UPSTREAM:-}" ]] || fail "QWEN3VL_UPSTREAM is $tree, but $tree/$entry is missing"
        say "fetching the submodule Qwen3-VL"
        said="$(GIT_TERMINAL_PROMPT=0 git -C "$root" submodule update --quiet --init --depth 1 Qwen3-VL 2>&1)" || true
        [[ -f "$tree/$entry" ]] || fail "Qwen3-VL could not be fetched ($(grep -m 1 . <<< "$said" || echo "it is empty")):" \
            "with network run git submodule update --init Qwen3-VL in $root," \
            "or set QWEN3VL_UPSTREAM to a checkout of https://github.com/QwenLM/Qwen3-VL"
    fi
fi

ready_python() {  # an interpreter that needs nothing more
    local python
    if [[ $floor = 1 ]]; then
        is_complete && echo "$venv/bin/python"
        return
    fi
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"}; do
        if [[ "$python" != "$venv/bin/python" ]] && has_packages "$python"; then echo "$python"; return; fi
    done
    if is_complete; then echo "$venv/bin/python"; return; fi
    if has_packages python3; then command -v python3; return; fi
    return 1
}

base_python() {  # the first interpreter from 3.11 on that can make an environment
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer with venv was found: install one (on Debian: python3 and python3-venv)"
}

install_fast() {  # the same wheels by uv, in a third of pip's time; uv does not read pip's settings by itself
    "$venv/bin/python" -m pip install "${quietly[@]}" --no-compile uv >&2 || return 1
    local pair found value settings=(UV_INDEX_STRATEGY=unsafe-best-match)
    for pair in index-url:UV_DEFAULT_INDEX extra-index-url:UV_INDEX find-links:UV_FIND_LINKS cert:SSL_CERT_FILE; do
        found="$("$venv/bin/python" -m pip config list | sed -n "s/^\(.*\)\.${pair%:*}='\(.*\)'\$/\1 \2/p")"
        value="$({ grep '^:env:' <<< "$found" || tail -n 1 <<< "$found"; } | cut -d ' ' -f 2- | sed 's/\\n/ /g; s/^ *//')"
        [[ "$pair" != find-links:* ]] || value="${value// /,}"
        [[ -z "$value" || -n "$(printenv "${pair#*:}")" ]] || settings+=("${pair#*:}=$value")
    done
    env "${settings[@]}" "$venv/bin/uv" pip install --quiet --resolution "$resolution" --python "$venv/bin/python" \
        -r "$root/requirements-dev.txt" >&2
}

install() {
    local base
    base="$(base_python)" || exit 2
    exec 9> "$root/.setup.lock"
    if command -v flock > /dev/null && ! flock --nonblock 9; then
        say "waiting for another set-up of $venv"
        flock 9
    fi
    if is_complete; then return; fi  # another process did it while we waited
    if [[ -e "$unfinished" ]] || ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
        say "setting up $venv with $("$base" --version) (a few minutes, once)"
        "$base" -m venv --clear "$venv" >&2 || fail "$base could not make an environment in $venv: see above"
    else
        say "bringing $venv up to date with requirements-dev.txt"
    fi
    touch "$unfinished"
    # Byte code is left to the first import: most of these files are never imported.
    install_fast \
        || { [[ $floor = 0 ]] && "$venv/bin/python" -m pip install "${quietly[@]}" --no-compile -r "$root/requirements-dev.txt" >&2; } \
        || fail "the packages could not be installed: see the message above, fix it and run ./scripts/setup.sh again"
    wanted > "$stamp"
    rm "$unfinished"
    say "ready: $venv"
}

install_gpu() {  # one by one: what cannot be built here is named and left out, since nothing needs it
    local package
    while read -r package; do
        "$python" -m pip install "${quietly[@]}" --no-build-isolation "$package" >&2 \
            || say "left out: $package could not be installed (see above); everything works without it"
    done < <(sed 's/#.*//; /^[[:space:]]*$/d' "$root/requirements-gpu.txt")
}

if ! python="$(ready_python)"; then
    install
    python="$venv/bin/python"
fi
if [[ $gpu = 1 ]]; then install_gpu; fi
echo "$python"
