#!/usr/bin/env bash
# Trains and scores each of METHODS at equal steps on the same data and prints the table; base comes first.
# Flags go through to every training; RUNS names the run folders (RUNS-base, RUNS-sin3d_pe, ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${METHODS:=base sin3d_pe mlp_pe}" "${RUNS:=outputs/scenes}"
if [[ "${DRY_RUN:-0}" = 1 ]]; then PYTHON="${PYTHON:-python}"; else PYTHON="${PYTHON:-$(scripts/setup.sh)}" || exit 2; fi
export PYTHON
folders=()
for method in $METHODS; do
    METHOD="$method" OUTPUT_DIR="$RUNS-$method" scripts/train_scenes.sh "$@"
    folders+=("$RUNS-$method")
    if [[ "${DRY_RUN:-0}" != 1 ]]; then "$PYTHON" scripts/evaluate_scenes.py --checkpoint "$RUNS-$method"; fi
done
if [[ "${DRY_RUN:-0}" != 1 ]]; then echo; "$PYTHON" scripts/evaluate_scenes.py --table "${folders[@]}"; fi
