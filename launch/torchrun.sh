#!/usr/bin/env bash
# Train on all GPUs of this machine.
#
#   bash launch/torchrun.sh --config configs/end_to_end.yaml
#   RANKS=2 bash launch/torchrun.sh --config configs/quickstart.yaml --run.dir runs/two_ranks
#
# RANKS     processes, one a GPU; default: every GPU, or one process where there is none
# RESTARTS  how often the group starts again from its last checkpoint after a rank has died; default 3
#
# Ctrl-C, or `touch RUN/STOP`: a checkpoint is written; the same command goes on from there. torchrun itself ends with 1
# then; RUN/exit_code says how the run ended (0 finished, 75 to be continued, 2 something to change).
set -euo pipefail

ranks=${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun would say so at length

exec torchrun --standalone --nproc_per_node="$ranks" --max-restarts="${RESTARTS:-3}" -m genre_dist.train "$@"
