#!/usr/bin/env bash
# Trains and scores each of METHODS at equal steps on the same data and prints the table; base comes first.
# Flags go through to every training; RUNS names the run folders (RUNS-base, RUNS-sin3d_pe, ...).
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
find_python
: "${METHODS:=base sin3d_pe mlp_pe}" "${RUNS:=outputs/scenes}"
read -ra methods <<< "$METHODS"
for method in "${methods[@]}"; do
    METHOD="$method" OUTPUT_DIR="$RUNS-$method" scripts/train_scenes.sh "$@"
    step "$PYTHON" scripts/evaluate_scenes.py --checkpoint "$RUNS-$method"
done
step "$PYTHON" scripts/evaluate_scenes.py --table "${methods[@]/#/$RUNS-}"
