#!/usr/bin/env bash
# Runs the tests marked slow: those that take minutes, install the wheel into a
# fresh environment, open a browser or compare with live peers. Takes less than
# half an hour on two cores. Programs are compiled with all optimizations.
# Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
export JAX_DISABLE_MOST_OPTIMIZATIONS=0
exec "${VENV:-.venv}/bin/python" -m pytest -m slow --durations=10 "$@"
