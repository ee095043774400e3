#!/usr/bin/env bash
# Runs one edsft_jax command on all hosts of a Cloud TPU pod slice.
#
#   scripts/launch_tpu_pod.sh NAME ZONE FOLDER -- finetune evaluate \
#     --config=configs/default.py --workdir=/mnt/shared/runs/mine
#
# NAME, ZONE   the slice, as listed by `gcloud compute tpus tpu-vm list`
# FOLDER       this repository on each host, after scripts/setup.sh and
#              .venv/bin/pip install -c requirements.txt 'jax[tpu]'
#
# Arguments after -- go to edsft_jax.main. The workdir, the prompts and a local
# model must have the same path on every host, and the workdir must be on a file
# system that the hosts share. Project and account come from `gcloud config`.
set -euo pipefail

if [ $# -lt 5 ] || [ "$4" != -- ]; then
  echo "usage: $0 NAME ZONE FOLDER -- STAGES AND FLAGS" >&2
  exit 2
fi
name="$1"
zone="$2"
printf -v command 'cd %q && exec .venv/bin/python -m edsft_jax.main' "$3"
shift 4
printf -v arguments ' %q' "$@" --coordinator=auto

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command$arguments"
