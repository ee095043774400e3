#!/usr/bin/env bash
# Sets up .venv and runs all stages on the built-in demo, in runs/quickstart.
# Further arguments go to the command: scripts/quickstart.sh --config.study.seeds='(0,)'
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec "${VENV:-.venv}/bin/python" -m edsft_jax.main \
  --config=configs/quickstart.py --workdir=runs/quickstart "$@"
