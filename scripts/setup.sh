#!/usr/bin/env bash
# Creates .venv in this repository and installs the pinned requirements there;
# nothing global changes. Does nothing if the requirements have not changed.
#
#   scripts/setup.sh [EXTRA]     EXTRA: test or bench
#
# PYTHON names the interpreter (3.11 or newer), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

extra="${1:-}"
venv="${VENV:-.venv}"

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.13 python; do
    if [ -n "$candidate" ] && "$candidate" -c \
      'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo 'edsft_jax needs Python 3.11 or newer with venv; set PYTHON=... '"$0" >&2
  return 1
}

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  echo "setup: $("$python" --version) -> $venv"
  "$python" -m venv "$venv"
fi

wanted="$(cat requirements.txt pyproject.toml scripts/setup.sh | cksum) $extra"
mark="$venv/.installed-${extra:-base}"
if [ "$(cat "$mark" 2>/dev/null)" != "$wanted" ]; then
  echo "setup: installing the pinned requirements${extra:+ and the $extra extra} (about a minute)"
  "$venv/bin/python" -m pip install --quiet --no-compile \
    --disable-pip-version-check \
    --constraint requirements.txt --requirement requirements.txt \
    --editable ".${extra:+[$extra]}"
  # On all cores, unlike pip. With PYTHONDONTWRITEBYTECODE set, Python would
  # compile the packages again in every process. Fails for files of packages that
  # are for other versions of Python.
  "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" >/dev/null || true
  echo "$wanted" >"$mark"
fi
