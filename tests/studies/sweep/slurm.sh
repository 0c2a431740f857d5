#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sweep as a Slurm array: sbatch slurm.sh grid.json results. Each task does its part (--shard auto),
# and is told 90 seconds before its time ends, which stops it in order (exit code 75). Given again, it
# does what is left.
#SBATCH --job-name=kvspan-sweep
#SBATCH --array=1-16
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@90
set -u
config=${1:?a configuration} out=${2:?a folder that all nodes see}
kvspan sweep "$config" --out "$out" --shard auto --memory 48GiB \
  --threads "${SLURM_CPUS_PER_TASK:-0}" &
trap 'kill -TERM $!' TERM
wait $!
status=$?
[ "$status" -le 128 ] || { wait $!; status=$?; }  # wait was interrupted: the sweep's own code
exit "$status"
