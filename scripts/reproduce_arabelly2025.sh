#!/usr/bin/env bash
# Runs a study of Arabelly et al. (2025) on GPUs or a TPU slice, stage by stage.
#
#   scripts/reproduce_arabelly2025.sh flan|dolly WORKDIR [OPTIONS]
#
# As scripts/reproduce_bhatt2024.sh, which explains STAGES, LAUNCH, the files in
# data/, the judge and the options for a v5e-16. By count (python
# scripts/count_hours.py arabelly2025_flan, and arabelly2025_dolly), not
# measured: 57 cells each, with 1.25 million and 140 thousand examples, 5 epochs.
#
#           machine   score   finetune   evaluate   all     score, finetune
#   flan    1 H100    1.1 h   133.7 h    6.3 h      141 h   53 GB, 23 GB
#           8 H100    0.1 h   16.7 h     0.8 h      18 h    53 GB, 23 GB
#           v5e-16    0.3 h   42.0 h     2.0 h      44 h    9 GB, 13 GB
#   dolly   1 H100    0.1 h   8.1 h      6.3 h      14 h    53 GB, 23 GB
#           8 H100    0.0 h   1.0 h      0.8 h      2 h     53 GB, 23 GB
#           v5e-16    0.0 h   2.5 h      2.0 h      5 h     9 GB, 13 GB
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  flan | dolly) config="configs/arabelly2025_$1.py" ;;
  *)
    echo "usage: $0 flan|dolly WORKDIR [OPTIONS]" >&2
    exit 2
    ;;
esac
shift
exec scripts/run_stages.sh "$config" "$@"
