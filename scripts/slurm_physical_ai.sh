#!/usr/bin/env bash
# Example for a Slurm cluster: full fine-tuning on two machines of eight GPUs. Adapt the lines below to yours, then
#   sbatch scripts/slurm_physical_ai.sh
# Prepare data and environment first, on a file system that all machines see; started again, a run goes on.
#SBATCH --job-name=physical_ai
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=outputs/slurm-%j.log
set -euo pipefail
LAUNCHER_FILE="$(readlink -f "$0")"
cd "${SLURM_SUBMIT_DIR:-$(dirname "$(readlink -f "$0")")/..}"
source scripts/common.sh
explain "$@"
[[ -n "${SLURM_JOB_ID:-}" ]] || fail "submit this file with sbatch"
export NNODES="$SLURM_NNODES" NPROC_PER_NODE="${SLURM_GPUS_ON_NODE:-8}" MASTER_PORT="${MASTER_PORT:-29500}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR OUTPUT_DIR="${OUTPUT_DIR:-outputs/driving_full}" VIDEO_CACHE="${VIDEO_CACHE:-data/cache/frames}"
# NODE_RANK differs from machine to machine, so it is read where the task runs.
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK="$SLURM_NODEID" exec ./scripts/train_physical_ai.sh "$@"' launcher "$@"
