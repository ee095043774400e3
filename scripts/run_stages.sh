#!/usr/bin/env bash
# Runs the stages of a study one after the other, the plan first.
#
#   scripts/run_stages.sh CONFIG WORKDIR [OPTIONS OF edsft_jax.main]
#
# STAGES   what to run after the plan: words of edsft_jax.main, or "all"; without
#          it, only the plan is made.
# LAUNCH   the command that starts edsft_jax.main on several processes, such as
#          "scripts/launch_tpu_pod.sh NAME ZONE FOLDER --". The plan still runs
#          here, on the CPU, and does not measure scoring.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [OPTIONS]" >&2
  exit 2
fi
here=("${VENV:-.venv}/bin/python" -m edsft_jax.main)
options=(--config="$1" --workdir="$2" "${@:3}")
if [ -n "${LAUNCH:-}" ]; then
  read -ra launch <<<"$LAUNCH"
  JAX_PLATFORMS=cpu "${here[@]}" plan "${options[@]}" \
    --config.plan.sample_prompts=0
else
  launch=("${here[@]}")
  "${here[@]}" plan "${options[@]}"
fi
stages="${STAGES:-}"
[ "$stages" = all ] && stages='score select annotate finetune evaluate report'
for stage in $stages; do
  "${launch[@]}" "$stage" "${options[@]}"
done
