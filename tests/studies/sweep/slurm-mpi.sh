#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sweep as one MPI job of Slurm: sbatch slurm-mpi.sh grid.json results. Four processes a node share
# one counter of units. All of them are told 90 seconds before the time ends, which stops them in
# order (exit code 75). Given again, it does what is left.
#SBATCH --job-name=kvspan-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@90
set -u
config=${1:?a configuration} out=${2:?a folder that all nodes see}
# srun starts the processes itself where Slurm has PMIx; elsewhere mpirun does, which passes the
# signal on, but gives them a second only.
exec srun --mpi=pmix kvspan sweep "$config" --out "$out" --memory 24GiB \
  --threads "${SLURM_CPUS_PER_TASK:-0}"
