#!/usr/bin/env bash
# The tests marked slow: what takes minutes, a wheel in an environment of its
# own, a browser, live peers. Below half an hour on two cores.
# Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
exec "${VENV:-.venv}/bin/python" -m pytest -m slow --durations=10 "$@"
