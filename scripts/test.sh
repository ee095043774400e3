#!/usr/bin/env bash
# Runs set-up, lint, format and type checks, and all quick tests on every core.
# Further arguments go to pytest: scripts/test.sh tests/selection
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
bin="${VENV:-.venv}/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
exec "$bin/python" -m pytest --numprocesses=auto --dist=loadfile \
  --no-loadscope-reorder "$@"
