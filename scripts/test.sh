#!/usr/bin/env bash
# Set-up and all tests; words after it go to pytest.
#   --floor   the model and data tests with the oldest versions that requirements.txt allows, in .venv-floor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
setup=(scripts/setup.sh) tests=()
if [[ "${1:-}" = --floor ]]; then
    shift
    setup+=(--floor) tests=(tests/model tests/data tests/test_invariance.py)
fi
python="$("${setup[@]}")" || exit 2
unset PYTHONDONTWRITEBYTECODE  # with it every start would compile all packages anew: 15 seconds
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec "$python" -m pytest -q "${tests[@]}" "$@"
