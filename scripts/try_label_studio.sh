#!/usr/bin/env bash
# Sends a todo through a real Label Studio: installs it in an environment of its
# own, starts a server on this machine, imports the tasks, answers most of them,
# skips one, rejects one, exports every form, and reads each one back.
#
#   scripts/try_label_studio.sh [--keep=FOLDER]   FOLDER gets the exports
#
# LABEL_STUDIO_VENV names the environment (default .venv-label-studio; 1 GB),
# PORT the server's port. Needs the environment of scripts/setup.sh, too.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${LABEL_STUDIO_VENV:-.venv-label-studio}"
ours="${VENV:-.venv}/bin/python"
port="${PORT:-8093}"
work="$(mktemp -d)"
server=''

finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

if [ ! -x "$venv/bin/label-studio" ]; then
  echo "try_label_studio: installing Label Studio in $venv (minutes)"
  "$ours" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    label-studio==1.23.2 label-studio-sdk==2.1.2
fi

# Nothing but the database belongs to this server, and it is removed.
token=0123456789abcdef0123456789abcdef01234567
LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true COLLECT_ANALYTICS=false \
  "$venv/bin/label-studio" start --no-browser --internal-host 127.0.0.1 \
  --port "$port" --data-dir "$work/server" --username try@example.com \
  --password try-label-studio --user-token "$token" \
  >"$work/server.log" 2>&1 &
server=$!

"$ours" scripts/label_studio_round_trip.py --url="http://127.0.0.1:$port" \
  --token="$token" --work="$work/study" "$@" || {
  echo 'try_label_studio: the end of the log of the server:' >&2
  tail -20 "$work/server.log" >&2
  exit 1
}
