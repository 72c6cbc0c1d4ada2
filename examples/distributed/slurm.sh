#!/bin/bash
# sbatch slurm.sh: two nodes, one process on each. KERAS_BACKEND is tensorflow or jax.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:30:00

export KERAS_BACKEND=${KERAS_BACKEND:-tensorflow}
srun python slurm.py
