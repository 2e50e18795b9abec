#!/bin/bash
#SBATCH --job-name=scvi-pyro
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4  # one for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=200G           # four times the counts, and 3 GB each
#SBATCH --time=04:00:00
#SBATCH --requeue            # after a node fails, the same call goes on from its checkpoint=
#SBATCH --open-mode=append

set -euo pipefail
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
source .venv/bin/activate
srun --kill-on-bad-exit=1 python train.py
