#!/usr/bin/env bash
# Runs the study of Bhatt et al. (2024) on GPUs or a TPU slice, stage by stage.
#
#   scripts/reproduce_bhatt2024.sh WORKDIR [OPTIONS OF edsft_jax.main]
#
# Without STAGES it only shows the plan. STAGES="score select annotate" runs
# these stages, STAGES=all all of them, and the same command resumes.
# configs/bhatt2024_flan.py says what is published, what is ours, and how the
# pool's file gets into data/; configs/benchmarks.py and configs/open_instruct.py
# name the benchmarks' files. AlpacaEval needs a judge:
# --config.evaluation.alpaca_eval.judge=JUDGE.
#
# By count (python scripts/count_hours.py bhatt2024_flan), not measured: 64
# cells with 1.75 million examples, 5 epochs.
#
#   machine   score   finetune   evaluate   all     memory per device: score, finetune
#   1 H100    1.1 h   188.4 h    7.0 h      196 h   53 GB, 23 GB
#   8 H100    0.1 h   23.5 h     0.9 h      25 h    53 GB, 23 GB
#   v5e-16    0.3 h   59.1 h     2.3 h      62 h    9 GB, 13 GB
#
# On a v5e-16 add --config.mesh.fsdp=4 --config.scoring.batch_tokens=16384 and
# set LAUNCH="scripts/launch_tpu_pod.sh NAME ZONE FOLDER --"; on SLURM
# LAUNCH="sbatch --wait ... scripts/launch_slurm.sh". Machines that only share
# the workdir divide the cells by --cells=I/N.
set -euo pipefail
cd "$(dirname "$0")/.."
exec scripts/run_stages.sh configs/bhatt2024_flan.py "$@"
