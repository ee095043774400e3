#!/usr/bin/env bash
# Runs one edsft_jax command on SLURM nodes with GPUs, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=4 \
#     scripts/launch_slurm.sh finetune evaluate --config=configs/default.py \
#     --workdir=/shared/runs/mine
#
# Submit it from this repository, after scripts/setup.sh and
# .venv/bin/pip install -c requirements.txt 'jax[cuda12]'. Arguments go to
# edsft_jax.main; the workdir must be on a file system that the nodes share.
# Request as many tasks per node as GPUs, so that no process waits for the
# longest answer on another GPU. JAX assigns GPUs by the process's local id, so
# each process must see all GPUs of its node.
#SBATCH --job-name=edsft_jax
#SBATCH --output=edsft_jax-%j.log
set -euo pipefail
# Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch.
exec srun --gpu-bind=none \
  ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
  "${VENV:-.venv}/bin/python" -m edsft_jax.main "$@"
