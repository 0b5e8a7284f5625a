#!/usr/bin/env bash
# Set-up and all tests, in two processes of one thread each; words after it go to pytest (-n 0: in one process).
#   --floor   the tests of data, model and training with the oldest versions that requirements.txt allows, in .venv-floor
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
setup=(scripts/setup.sh) tests=()
if [[ "${1:-}" = --floor ]]; then
    shift
    setup+=(--floor) tests=(tests/model tests/data tests/train tests/test_invariance.py)
fi
python="$("${setup[@]}")" || exit 2
unset PYTHONDONTWRITEBYTECODE  # with it every start would compile all packages anew: 15 seconds
export OMP_NUM_THREADS=1
# Files in the order of tests/conftest.py, the longest first.
exec "$python" -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder ${tests[@]+"${tests[@]}"} "$@"
