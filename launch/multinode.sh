#!/usr/bin/env bash
# Train on several machines without a scheduler: run this on each of them, with the same settings.
#
#   HEAD=node1:29400 NODES=2 bash launch/multinode.sh --config configs/end_to_end.yaml
#
# HEAD      host:port where the nodes meet: one of them, by a name or address that the others reach; a free port
# NODES     how many machines
# RANKS     processes on each, one a GPU; default: every GPU, or one process where there is none
# RESTARTS  how often the group starts again from its last checkpoint after a rank has died; default 3
# JOB       any word, the same on all nodes; another one for another run that meets at the same HEAD
#
# Shards and the run's folder must be under the same path on all nodes. The nodes may start in any order and wait for each
# other for ten minutes. With several networks: export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (`genre-dist doctor`).
set -euo pipefail

: "${HEAD:?host:port of the node where all meet, e.g. HEAD=node1:29400; there is no default, or each node would train alone}"
: "${NODES:?how many machines take part, e.g. NODES=2}"
[[ $HEAD == *:* ]] || { echo "HEAD=$HEAD: a port is missing, e.g. HEAD=$HEAD:29400" >&2; exit 2; }

ranks=${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # or restarted ranks may look for those that died

exec torchrun --nnodes="$NODES" --nproc_per_node="$ranks" --max-restarts="${RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$HEAD" --rdzv_id="${JOB:-genre_dist}" -m genre_dist.train "$@"
