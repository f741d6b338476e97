#!/usr/bin/env bash
# What is particular to your cluster: the one file to edit. Read it into the shell in which you submit,
#
#   source launch/slurm/cluster.sh
#
# (sbatch takes what is exported here as its options); every job of launch/slurm reads it again where it runs.
# Another file instead of this one: export CLUSTER=/path/to/it
# shellcheck disable=SC2034  # the arrays are for the scripts that read this file

# --- how jobs are submitted; options on sbatch's command line go before these
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal
GPU_JOB=() # options of every training job that study.sbatch submits, such as (--nodes=2 --gpus-per-node=8)
CPU_JOB=() # options of the jobs without GPUs that the scripts submit, such as (--partition=cpu)

# --- what a job needs where it runs
# module load python/3.12 cuda/13.0
# shellcheck disable=SC1091
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    # where nodes have several networks: `genre-dist doctor`
# export WANDB_MODE=offline                               # where compute nodes have no internet

# --- a container around every command of a job; what it reads and writes has to be bound
# CONTAINER=(apptainer exec --nv --bind /scratch genre_dist.sif)
CONTAINER=()
