#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with a GPU: builds what it needs for that GPU only, checks the kernels on it, and
# measures. Stages come in order of worth; every result is appended to TABLE.md as soon as it is there,
# and a stage that no time is left for says so. Not part of any other script.
#   usage: gpu_replay/measure.sh [TABLE.md] [MINUTES]
#          gpu_replay/measure.sh --plan                   only says what would run, and for how long
set -euo pipefail
plan=
[ "${1:-}" != --plan ] || { plan=1; shift; }
table=$(realpath -m "${1:-gpu_measurements.md}")
minutes=${2:-12}
cd "$(dirname "$0")/.."
end=$((SECONDS + 60 * minutes))
failed=0
work=

row() { printf '| %s | %s | %s |\n' "$1" "$2" "$3" | tee -a "$table"; }

# stage NAME SECONDS PICK COMMAND...: SECONDS it needs at most; PICK reads what it printed and prints the
# result, a line for each row of the table.
stage() {
  local name=$1 need=$2 pick=$3 left=$((end - SECONDS)) begin=$SECONDS result=0
  shift 3
  if [ -n "$plan" ]; then
    printf '%5d s  %s\n' "$need" "$name"
    return 0
  fi
  if [ "$left" -le 10 ]; then
    row "$name" "no time left of $minutes minutes" 0
    return 0
  fi
  timeout $((need < left ? need : left)) "$@" >"$work/log" 2>&1 || result=$?
  { echo "== $name"; cat "$work/log"; } >>"$table.log"
  local took=$((SECONDS - begin))
  case $result in
    0)
      "$pick" <"$work/log" >"$work/result" || true
      [ -s "$work/result" ] || echo "done" >"$work/result"
      while IFS= read -r line; do
        row "$name" "${line//|/ }" "$took"
        name='' took=''
      done <"$work/result" ;;
    124) row "$name" "stopped: it takes more than $took s" "$took" ;;
    77) row "$name" "$(grep -m 1 'skipped:' "$work/log" || echo skipped)" "$took" ;;
    *)
      row "$name" "FAILED ($result): $(grep . "$work/log" | tail -n 1 | tr '|' ' ')" "$took"
      failed=1 ;;
  esac
  return 0
}
last_line() { grep . | tail -n 1; }
# Columns of `kvspan replay` lie two spaces apart; those of a policy are indented.
memory_lines() {
  awk -F'  +' '/^peaks/ { on = 1; next } /^predicted:/ { on = 0 }
    on && /^[a-z]/ { policy = $1 }
    on && /^  [a-z]/ { print policy " in " $2 ": predicted " $3 ", pool " $4 ", backed " $(NF - 1) ", device says " $NF }
    /^out of memory/'
}
attention_lines() {
  awk -F'  +' '/^attention of decode rows/ { on = 1; next } / rows of .* in layout / { on = 0 }
    on && /^  [a-z]/ { print $2 ": retained " $3 " % (run " $4 "), error " $5 " % (run " $6 "), " $7 " a row in " $8 ", " $9 " GiB/s, speed-up " $10 " (ideal " $11 ")" }'
}
benchmark_lines() {
  awk '/manual_time/ { name = $0; sub(/\/manual_time.*/, "", name); rest = $0; sub(/.*manual_time */, "", rest)
    split(rest, f, " +"); out = name ": " f[1] " " f[2]
    for (i = 3; i in f; i++) if (f[i] ~ /=/) out = out ", " f[i]
    print out }'
}

capability='that of the card'
if [ -z "$plan" ]; then
  no_gpu() {
    echo "measure.sh: $1; nothing was measured. Where there is a GPU it would run (seconds at most):" >&2
    "$PWD/gpu_replay/measure.sh" --plan >&2
    exit 5
  }
  command -v nvidia-smi >/dev/null || no_gpu "there is no GPU here: nvidia-smi was not found"
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader -i 0) ||
    no_gpu "the driver finds no GPU"
  capability=$(sed -E 's/.*, *([0-9]+)\.([0-9]+)$/\1\2/' <<<"$gpu")
  PATH=$PATH:/usr/local/cuda/bin
  command -v nvcc >/dev/null || no_gpu "nvcc was not found on PATH or in /usr/local/cuda/bin"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  printf '\n## %s, nvcc %s, %s, git %s\n\n| what | result | s |\n|---|---|---|\n' "$gpu" \
    "$(nvcc --version | sed -nE 's/.*release ([0-9.]+).*/\1/p')" "$(date -u +%F)" \
    "$(git describe --always --dirty 2>/dev/null || echo unknown)" >>"$table"
fi

folder=build/measure
tests=$folder/tests/kvspan_cuda_tests
program=$folder/cli/kvspan
trace=traces/smollm2-passkey.safetensors
replay=("$program" replay "$trace" --prompt 512 --budget 20% --device cuda --quiet --no-timeline)

stage "build for compute capability $capability" 400 last_line bash -c "
  cmake -S . -B $folder -D CMAKE_BUILD_TYPE=Release -D KVSPAN_CUDA=ON -D KVSPAN_GUI=OFF -D KVSPAN_UNITY=ON \
    -D CMAKE_CUDA_ARCHITECTURES=$capability &&
  cmake --build $folder --parallel $(nproc) --target kvspan kvspan_cuda kvspan_cuda_tests"
stage "pool and attention against double precision" 60 last_line "$tests" '[replay]'
stage "attention replay" 60 attention_lines "${replay[@]}" --policy full --policy tova --policy kivi \
  --policy think --layout paged16_per_head --attention 100 --out "$table.attention.json"
stage "memory replay, mapped granules" 60 memory_lines "${replay[@]}" --policy full --policy h2o \
  --layout paged16_per_head --layout paged16_per_head_compact --out "$table.memory.json"
stage "memory replay, stream-ordered pool" 60 memory_lines "${replay[@]}" --policy full --policy h2o \
  --layout paged16_per_head --layout paged16_per_head_compact --allocator pool --out "$table.pool.json"
stage "capture's kernels against double precision" 90 last_line "$tests" '~[replay]'
stage "build the benchmarks" 120 last_line cmake --build $folder --parallel "$(nproc)" --target kvspan_cuda_bench kvspan_score_bench
stage "a copy of device memory, and rows from a pool" 60 benchmark_lines "$folder/tests/kvspan_cuda_bench" \
  --benchmark_filter='copy|one row' --benchmark_min_time=0.2
stage "capture, f16 and bf16, and the same attention without" 90 benchmark_lines \
  "$folder/tests/kvspan_cuda_bench" --benchmark_filter='gemm|Llama.*f16 (8192|32768)' --benchmark_min_time=0.2
stage "40 policies' retained attention in one pass" 60 last_line "$folder/tests/kvspan_score_bench"
stage "that pass against the CPU, all rows" 60 last_line bash -c "
  $program run $trace --policy all --budget 20% --prompt 512 --device cuda --audit 1 --no-chart --quiet \
    --no-timeline --out '$table.scores.json' && grep '\"audit\"' '$table.scores.json'"
stage "compute-sanitizer, pool and attention" 180 last_line compute-sanitizer --error-exitcode 9 "$tests" \
  'a head without entries*'
exit "$failed"
