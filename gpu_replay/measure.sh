#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with a GPU: builds what it needs for that GPU only, checks the kernels on it, and
# measures. Every result is appended to TABLE.md as soon as it is there; stages that no time is left for
# say so. Not part of any other script.
#   usage: gpu_replay/measure.sh [TABLE.md] [MINUTES]
set -euo pipefail
cd "$(dirname "$0")/.."
table=${1:-gpu_measurements.md}
minutes=${2:-12}
end=$((SECONDS + 60 * minutes))

row() { printf '| %s | %s |\n' "$1" "$2" | tee -a "$table"; }
# stage NAME SECONDS COMMAND...: what it needs at most; its last line becomes the result.
stage() {
  local name=$1 need=$2 log
  shift 2
  if [ $((SECONDS + 10)) -ge "$end" ]; then
    row "$name" "no time left of $minutes minutes"
    return 0
  fi
  log=$(mktemp)
  local left=$((end - SECONDS)) begin=$SECONDS result=0
  timeout $((need < left ? need : left)) "$@" >"$log" 2>&1 || result=$?
  case $result in
    0) row "$name" "$(grep . "$log" | tail -n 1 | tr -d '|') ($((SECONDS - begin)) s)" ;;
    124) row "$name" "stopped after $((SECONDS - begin)) s" ;;
    *) row "$name" "FAILED ($result): $(grep . "$log" | tail -n 1 | tr -d '|')"; failed=1 ;;
  esac
  cat "$log" >>"$table.log"
  rm -f "$log"
  return 0
}

command -v nvidia-smi >/dev/null || { echo "measure.sh: there is no GPU here: nvidia-smi was not found" >&2; exit 5; }
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader -i 0) ||
  { echo "measure.sh: the driver finds no GPU" >&2; exit 5; }
capability=$(sed -E 's/.*, *([0-9]+)\.([0-9]+)$/\1\2/' <<<"$gpu")
PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || { echo "measure.sh: nvcc was not found on PATH or in /usr/local/cuda/bin" >&2; exit 5; }

failed=0
folder=build/measure
tests=$folder/tests/kvspan_cuda_tests
program=$folder/cli/kvspan
trace=traces/smollm2-passkey.safetensors
printf '\n## %s, %s, git %s\n\n| what | result |\n|---|---|\n' "$gpu" "$(date -u +%F)" \
  "$(git describe --always --dirty 2>/dev/null || echo unknown)" >>"$table"

stage "build for compute capability $capability" 420 bash -c "
  cmake -S . -B $folder -D CMAKE_BUILD_TYPE=Release -D KVSPAN_CUDA=ON -D KVSPAN_GUI=OFF -D KVSPAN_UNITY=ON \
    -D CMAKE_CUDA_ARCHITECTURES=$capability &&
  cmake --build $folder --parallel $(nproc) --target kvspan kvspan_cuda kvspan_cuda_tests"
stage "pool and attention against double precision" 60 "$tests" '[replay]'
stage "memory replay on the device" 60 "$program" replay $trace --policy full --policy h2o --budget 20% \
  --prompt 512 --device cuda --layout paged16_per_head_compact --quiet --out "$table.memory.json"
stage "attention replay on the device" 90 "$program" replay $trace --policy full --policy tova --budget 20% \
  --prompt 512 --device cuda --layout paged16_per_head --attention 100 --quiet --out "$table.attention.json"
stage "capture's kernels against double precision" 120 "$tests" '~[replay]'
stage "compute-sanitizer, pool and attention" 180 compute-sanitizer --error-exitcode 9 "$tests" \
  'a head without entries*'
if cmake --build $folder --target help 2>/dev/null | grep -q kvspan_cuda_bench; then
  stage "build capture's benchmark" 120 cmake --build $folder --parallel "$(nproc)" --target kvspan_cuda_bench
  stage "capture's benchmark" 120 "$folder/tests/kvspan_cuda_bench" --benchmark_min_time=0.2
fi
exit "$failed"
