#!/usr/bin/env bash
# Runs the tests marked slow: those that take minutes, install the wheel into a
# fresh environment, open a browser or compare with live peers; and all tests of
# selection. Takes less than half an hour on two cores. Programs are compiled as
# users compile them. Arguments go to pytest, which then runs only what they name.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
export JAX_DISABLE_MOST_OPTIMIZATIONS=0
python="${VENV:-.venv}/bin/python"
if [ $# -eq 0 ]; then
  "$python" -m pytest -m 'slow or not slow' tests/selection
  set -- --ignore=tests/selection
fi
exec "$python" -m pytest -m slow --durations=10 "$@"
