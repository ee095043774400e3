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

# Tests write in memory where there is room, since stages flush each file to
# disk. TMPDIR=/tmp keeps the files of the last runs.
room="$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }' || true)"
if [ -z "${TMPDIR:-}" ] && [ "${room:-0}" -gt 4000000 ]; then
  TMPDIR="$(mktemp -d /dev/shm/edsft_jax.XXXXXX)"
  export TMPDIR
  trap 'rm -rf "$TMPDIR"' EXIT
fi
"$bin/python" -m pytest --numprocesses=auto --dist=loadfile \
  --no-loadscope-reorder "$@"
