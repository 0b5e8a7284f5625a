#!/usr/bin/env bash
# Set-up and all tests; words after it go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(scripts/setup.sh)" || exit 2
unset PYTHONDONTWRITEBYTECODE  # with it every start would compile all packages anew: 15 seconds
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec "$python" -m pytest -q "$@"
