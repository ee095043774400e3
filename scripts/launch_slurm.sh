#!/usr/bin/env bash
# Runs one edsft_jax command on SLURM nodes with GPUs: one process a GPU.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=4 \
#     scripts/launch_slurm.sh pool score --config=configs/default.py \
#     --workdir=/shared/runs/mine
#
# Submit it from this repository, after scripts/setup.sh and
# .venv/bin/pip install -c requirements.txt 'jax[cuda12]'. Arguments go to
# edsft_jax.main; the workdir must lie on a file system that the nodes share.
# Give as many tasks a node as GPUs: each process then decodes by itself and
# never waits for the longest answer on another GPU, and JAX takes for each the
# GPU of its number on the node, of which it must see all.
#SBATCH --job-name=edsft_jax
#SBATCH --output=edsft_jax-%j.log
set -euo pipefail
# srun takes --cpus-per-task from sbatch no more (SLURM 22.05 and later).
exec srun --gpu-bind=none \
  ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
  "${VENV:-.venv}/bin/python" -m edsft_jax.main "$@"
