#!/usr/bin/env bash
# Train with DeepSpeed's own launcher and a hostfile; torchrun runs the ZeRO strategies just as well.
#
#   bash launch/deepspeed.sh --config configs/end_to_end.yaml --parallel.strategy zero2
#
# HOSTFILE   lines `node1 slots=8`, one a machine; default: ./hostfile. One line with this machine's name is enough.
# NODE_RANK  without ssh between the nodes: run this on each of them, NODE_RANK being the place of its line (0, 1, ...)
# HEAD       address of the first node and a free port (host:port); default: the first line's host and port 29500
#
# DeepSpeed is an extra: pip install 'genre_dist[deepspeed]'. With ssh (the default) it must reach all nodes without a
# password, and pdsh must be installed. Environment variables for the nodes go into a file .deepspeed_env.
set -euo pipefail

hostfile=${HOSTFILE:-hostfile}
[ -f "$hostfile" ] || { echo "$hostfile is missing: a line \`NODE slots=GPUS\` for each machine, or name a file with HOSTFILE" >&2; exit 2; }
first=$(awk '!/^#/ && NF {print $1; exit}' "$hostfile")
head=${HEAD:-$first:29500}

options=(--hostfile "$hostfile" --master_addr "${head%:*}" --master_port "${head##*:}" --no_local_rank --module)
[ -z "${NODE_RANK:-}" ] || options+=(--no_ssh --node_rank "$NODE_RANK")

exec deepspeed "${options[@]}" genre_dist.train "$@"
