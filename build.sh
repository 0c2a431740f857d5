#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# What the demo does: one bundled trace, eight of the policies, twice; then three texts through the
# bundled model, from text to picture; and where the files go.
demo_trace=traces/smollm2-passkey.safetensors
demo_dir=build/demo
policies=(--policy full --policy streaming_llm --policy h2o --policy tova --policy snapkv --policy quest
  --policy kivi --policy "chunked(snapkv)" --budget 20%)
demo_policies=("${policies[@]}" --chunk 512 --chart)
capture_policies=("${policies[@]}" --chunk 256)
kvspan=build/release/cli/kvspan
viewer=build/release/gui/kvspan-viewer
model=build/release/models/minimind2-small
cuda_module=build/release/cli/kvspan_cuda.so

# Debian and Ubuntu packages, by what needs them.
headless_packages=(g++ cmake ninja-build libboost-dev libeigen3-dev libfmt-dev libtbb-dev libhwy-dev
  libssl-dev nlohmann-json3-dev libcli11-dev pkg-config libdnnl-dev libpcre2-dev libutf8proc-dev)
viewer_packages=(qt6-base-dev qt6-charts-dev qt6-svg-dev libqt6opengl6-dev fonts-dejavu-core)
test_packages=(catch2 clang-format-16 libopenmpi-dev openmpi-bin)
deep_packages=(libbenchmark-dev clang-16 libclang-rt-16-dev clang-tidy-16)

usage() {
  cat <<'USAGE'
usage: ./build.sh            build the release program
       ./build.sh demo       build it and replay the bundled trace
       ./build.sh viewer     build the viewer, too, replay the bundled trace and look at the result;
                             without a display every view becomes a picture
       ./build.sh cuda       build the module with which the program computes on a GPU; the others
                             do without it
       ./build.sh test       everything that CI checks: all tests with warnings as errors, the
                             readers' and policies' tests under sanitizers, the format
       ./build.sh test all   deeper: also clang 16 with a fuzzer, all tests under sanitizers and in
                             the release build, clang-tidy

Each of them first installs the Debian or Ubuntu packages that are missing (and says which).
Everything else it writes goes into build/, its logs into build/logs/.
USAGE
}

say() { printf '%s\n' "$*"; }
die() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

# ---- Stages: one line each, output in a log, the ends of failed logs at the end of the script ----

stages=()       # a line each, for the summary
failed_logs=()
stage_number=0
child=
trap report_failures EXIT
trap 'if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; wait "$child"; fi || true; exit 130' INT TERM

# stage NAME COMMAND...: afterwards $log names the log. A failure is kept for report_failures; under
# `set -e` it ends the script, unless the caller goes on.
stage() {
  local name=$1 start=$SECONDS status=0 shown=$SECONDS
  shift
  stage_number=$((stage_number + 1))
  [ "$stage_number" -gt 1 ] || rm -rf build/logs
  log=build/logs/$(printf '%02d' "$stage_number")-${name//[^a-z0-9-]/-}.log
  mkdir -p build/logs
  [ ! -t 1 ] || printf '%-36s ...' "$name"
  "$@" >"$log" 2>&1 </dev/null &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.5
    if [ -t 1 ]; then
      printf '\r\033[K%-36s %4d s  %s' "$name" $((SECONDS - start)) "$(progress)"
    elif [ $((SECONDS - shown)) -ge 60 ]; then
      shown=$SECONDS
      printf '%-36s %4d s so far  %s\n' "$name" $((SECONDS - start)) "$(progress)"
    fi
  done
  wait "$child" || status=$?
  child=
  [ ! -t 1 ] || printf '\r\033[K'
  local line
  line=$(printf '%-36s %4d s' "$name" $((SECONDS - start)))
  if [ "$status" -ne 0 ]; then
    line+="  FAILED (exit code $status), log: $log"
    failed_logs+=("$log")
  fi
  stages+=("$line")
  say "$line"
  [ "$status" -eq 0 ]
}

# skip NAME REASON: a stage that cannot run because one before it failed.
skip() {
  local line
  line=$(printf '%-36s skipped: %s' "$1" "$2")
  stages+=("$line")
  say "$line"
}

# What tests printed that failed, of ctest's log; skipped ones are no failures.
failed_tests() {
  awk '/^ *[0-9]+\/[0-9]+ Test +#/ { shown = /\*\*\*/ && !/\*\*\*Skipped/ }
       /^ +Start +[0-9]+:/ { shown = 0 }
       shown' "$1"
}

# However the script ends: what failed, compilers' errors first, and the stages as the last lines.
report_failures() {
  local status=$? log
  [ ${#failed_logs[@]} -gt 0 ] || return "$status"
  for log in "${failed_logs[@]}"; do
    say
    say "---- errors and end of $log ----"
    { head -n -40 "$log" | grep -E '(: |fatal )error: |^FAILED: ' | head -n 40; } || true
    { failed_tests "$log" | head -n 100; } || true
    tail -n 40 "$log"
  done
  say
  say "${#failed_logs[@]} of $stage_number stages failed:"
  printf '    %s\n' "${stages[@]}"
  return "$status"
}

# How far ninja or ctest says it is.
progress() { tail -c 400 "$log" | grep -oE '\[[0-9]+/[0-9]+\]|^ *[0-9]+/[0-9]+ Test' | tail -n 1 || true; }

# One compiler needs up to 1.2 GiB; a machine with many cores and little memory must not swap.
job_count() {
  local cores memory
  cores=$(nproc 2>/dev/null || echo 2)
  memory=$(awk '/MemAvailable/ { print int($2 / 1258291) }' /proc/meminfo 2>/dev/null || echo "$cores")
  [ "$memory" -ge 1 ] || memory=1
  echo $((cores < memory ? cores : memory))
}

# ---- Packages ------------------------------------------------------------------------------------

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt_update() {
  local try
  for try in 1 2 3; do
    "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 update && return 0
    [ "$try" -eq 3 ] || sleep $((5 * try))
  done
  return 1
}

apt_install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
    install -y --no-install-recommends "$@"
}

# install_packages PACKAGE...: installs those that are missing, by apt.
install_packages() {
  local package missing=()
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    say "no apt on this machine: nothing is installed; going on with what is here"
    say "  (the Debian names of what is needed: $*)"
    return
  fi
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing with apt: ${missing[*]}"
  as_root=(env)
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      die "these packages are missing, and there is neither root nor sudo to install them: ${missing[*]}"
    say "  (sudo asks for a password if this machine wants one)"
    sudo -v || die "sudo refused; install these and start again: ${missing[*]}"
    as_root=(sudo)
  fi
  stage 'package lists' apt_update
  stage 'packages' apt_install "${missing[@]}"
}

check_tools() {
  local tool version
  for tool in cmake ninja c++; do
    command -v "$tool" >/dev/null || die "$tool is needed and was not found"
  done
  version=$(cmake --version | sed -n 's/^cmake version //p')
  [ "$(printf '%s\n' 3.25 "$version" | sort -V | head -n 1)" = 3.25 ] ||
    die "cmake $version is too old; 3.25 is needed (Debian 12, Ubuntu 24.04 or newer)"
}

# ---- Building and testing ------------------------------------------------------------------------

# build PRESET [CMAKE_ARGUMENT...]: configures and builds everything, or only ${targets[@]} if set; all
# that compiles, so that every error shows.
build() {
  local preset=$1 unity=ON
  shift
  [ "$preset" != clang-16 ] || unity=OFF  # one build with every file by itself: what includes lack shows
  if ! stage "configure $preset" cmake --preset "$preset" -D KVSPAN_UNITY="$unity" "$@"; then
    skip "build $preset" "configure $preset failed"
    return 1
  fi
  sed -n '/^-- kvspan /,/^-- $/ { /^-- $/d; s/^-- /    /; p }' "$log"
  stage "build $preset" cmake --build --preset "$preset" -j "$(job_count)" \
    ${targets[@]+--target "${targets[@]}"} -- -k 0
}

# run_tests PRESET [CTEST_ARGUMENT...]
run_tests() {
  local preset=$1 status=0
  shift
  # One more than there are cores: some tests wait for the disk.
  stage "test $preset" ctest --preset "$preset" -j "$(($(job_count) + 1))" --no-label-summary "$@" || status=1
  sed -n '/tests passed,/,$ p' "$log" | sed 's/^/    /'
  return "$status"
}

# check PRESET [CMAKE_ARGUMENT...]: builds (${targets[@]}) and runs the tests (chosen by ${tests[@]}), and
# the script goes on whatever fails. Afterwards $built says whether there was something to test.
check() {
  local preset=$1
  built=no
  if build "$@"; then
    built=yes
    run_tests "$preset" ${tests[@]+"${tests[@]}"} || true
  else
    skip "test $preset" "build $preset failed"
  fi
}

# check_stage NAME NEEDED COMMAND...: a stage that needs what $built said of the preset NEEDED.
check_stage() {
  local name=$1 needed=$2
  shift 2
  if [ "$built" = yes ]; then
    stage "$name" "$@" || true
  else
    skip "$name" "build $needed failed"
  fi
}

# Tracked sources of C++ and CUDA; in a tarball, all of them.
sources() {
  git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' 2>/dev/null | grep . ||
    find cli sim tests tracegen gpu_replay gui -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null
}

check_format() { sources | xargs clang-format-16 --dry-run -Werror; }
check_tidy() {  # without what needs CUDA's own headers
  sources | grep '\.cpp$' | grep -v -e cuda_bench -e cuda_gpu -e needs_gpu -e cuda/driver | xargs -n 1 -P "$(job_count)" clang-tidy-16 -p build/clang-16 --quiet
}

# release_targets TARGET...: they and, where ./build.sh cuda has made it, the CUDA module, which must be
# of the same build; without it nothing looks for nvcc.
release_targets() {
  targets=("$@")
  cuda_option=(-D KVSPAN_CUDA=OFF)
  if [ -e "$cuda_module" ]; then
    targets+=(kvspan_cuda)
    cuda_option=()
  fi
}

build_release() {
  install_packages "${headless_packages[@]}"
  check_tools
  say "building the release program: three minutes on 2 cores"
  release_targets kvspan kvspan_bundled_model
  build release ${cuda_option[@]+"${cuda_option[@]}"}
  unset targets
}

build_viewer() {
  install_packages "${headless_packages[@]}" "${viewer_packages[@]}"
  check_tools
  say "building the release programs: four minutes on 2 cores"
  release_targets kvspan kvspan-viewer
  build release -D KVSPAN_GUI=ON ${cuda_option[@]+"${cuda_option[@]}"}
  unset targets
}

# For the GPUs of this machine; where none is seen, for every major architecture.
build_cuda() {
  local architectures=all-major
  install_packages "${headless_packages[@]}"
  check_tools
  command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
  command -v nvcc >/dev/null || die "nvcc of CUDA 12 or newer is needed and was not found on PATH or in \
/usr/local/cuda/bin"
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then architectures=native; fi
  say "building the CUDA module, device code for: $architectures"
  targets=(kvspan kvspan_cuda)
  build release -D KVSPAN_CUDA=ON -D CMAKE_CUDA_ARCHITECTURES="$architectures"
  unset targets
  say "built $cuda_module; $kvspan takes it when a command computes on a GPU:"
  say "  $kvspan capture --model DIR --text FILE --device cuda --out trace.safetensors"
}

# show COMMAND...: as a user would type it, then its output.
show() {
  say "\$$(printf ' %q' "$@")"
  say
  "$@"
  say
}

# demo_run NAME TITLE ARGUMENT...
demo_run() {
  local name=$1 title=$2
  shift 2
  say
  say "== $title =="
  show "$kvspan" run "$demo_trace" "${demo_policies[@]}" "$@" \
    --svg "$demo_dir/$name.svg" --out "$demo_dir/$name.json"
}

# demo_capture NAME TITLE ARGUMENT...: text -> trace -> table and picture. MiniMind2's bos token is 1.
demo_capture() {
  local name=$1 title=$2
  shift 2
  say "== $title =="
  show "$kvspan" capture --model "$model" --bos 1 "$@" --out "$demo_dir/$name.safetensors"
  show "$kvspan" run "$demo_dir/$name.safetensors" "${capture_policies[@]}" \
    --svg "$demo_dir/$name.svg" --out "$demo_dir/$name.json"
}

run_demo() {
  mkdir -p "$demo_dir"
  demo_run long-prompt 'long prompt, short output: the prompt as it is'
  demo_run short-prompt 'short prompt, long output: what follows token 512 is treated as decoding' --prompt 512
  demo_capture prose 'prose, captured from the bundled model: 1,024 tokens read, 128 written' \
    --text traces/texts/sherlock-excerpt.txt --prompt 1024 --generate 128 --temperature 0.8 --seed 1
  demo_capture code 'code, captured likewise' \
    --text traces/texts/code-excerpt.c --prompt 1024 --generate 128 --temperature 0.8 --seed 1
  demo_capture passkey 'a pass key hidden in a novel; a model of 26 M parameters does not find it' \
    --text traces/texts/passkey.txt --generate 16 \
    --span 'needle=The pass key is 71432. Remember it. 71432 is the pass key.' \
    --span 'question=What is the pass key? The pass key is'
  say "pictures: $demo_dir/*.svg (any browser shows them); results: $demo_dir/*.json"
  say
  say "next:"
  say "  $kvspan run $demo_trace --policy snapkv --policy tova --policy h2o --prompt 512 --match footprint=40%"
  say "  $kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768"
  say "  $kvspan policies snapkv"
  say "  $kvspan trace stats $demo_dir/prose.safetensors"
  say "  $kvspan capture --model FOLDER_OR_GGUF --text YOUR_TEXT --generate 64 --out trace.safetensors"
}

run_viewer() {
  local results=("$demo_dir/short-prompt.json" "$demo_dir/long-prompt.json")
  build_viewer
  mkdir -p "$demo_dir"
  demo_run short-prompt 'short prompt, long output: what follows token 512 is treated as decoding' \
    --prompt 512 --timeline "$demo_dir/short-prompt.timeline.safetensors" \
    --lifetimes "$demo_dir/short-prompt.lifetimes.safetensors"
  demo_run long-prompt 'long prompt, short output: the prompt as it is' \
    --timeline "$demo_dir/long-prompt.timeline.safetensors" \
    --lifetimes "$demo_dir/long-prompt.lifetimes.safetensors"
  if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    say "opening the window; to see it again: $viewer ${results[0]}"
    "$viewer" --new-session "${results[0]}"
    return
  fi
  say "there is no display: every view is exported"
  show "$viewer" --export-all "$demo_dir/views" --run 'chunked(snapkv' --layer 1 --head 0 "${results[0]}"
  say "pictures (.png, .svg) and numbers (.csv) of every view: $demo_dir/views"
}

run_test() {
  local deep=$1
  install_packages "${headless_packages[@]}" "${viewer_packages[@]}" "${test_packages[@]}"
  [ "$deep" = no ] || install_packages "${deep_packages[@]}"
  check_tools
  if [ "$deep" = yes ]; then
    export KVSPAN_DEEP=1  # all random cases, and others every time
    check dev -D KVSPAN_GUI=ON
  else  # each test once: those that read or decide under the sanitizers, below
    targets=(kvspan kvspan-viewer kvspan_tests kvspan_input_tests kvspan_capture_tests
      kvspan_cli_tests kvspan_twin_selfcheck kvspan_gui_tests)
    tests=(-LE '^input$')
    check dev -D KVSPAN_GUI=ON
    targets=(kvspan_input_tests kvspan_tracegen_input_tests kvspan_fuzz_replay kvspan_gguf_fuzz_replay
      kvspan_sweep_fuzz_replay)
    tests=(-L '^input$')
    check asan
    unset targets tests
  fi
  stage 'format' check_format || true
  if [ "$deep" = yes ]; then
    check asan
    check clang-16
    check_stage 'clang-tidy' clang-16 check_tidy
    check release -D KVSPAN_TESTS=ON
    check_stage 'build benchmarks' release cmake --build --preset release -j "$(job_count)" \
      --target kvspan_bench kvspan_replay_bench kvspan_viewer_bench -- -k 0
  fi
  [ ${#failed_logs[@]} -eq 0 ] || exit 1
  say
  say "all checks passed; time by stage:"
  printf '    %s\n' "${stages[@]}"
  printf '    %-36s %4d s\n' total "$SECONDS"
}

[ $# -le 2 ] || { usage >&2; exit 2; }
case "${1:-} ${2:-}" in
  ' ')
    build_release
    say "built $kvspan; try: ./build.sh demo"
    ;;
  'demo ')
    build_release
    run_demo
    ;;
  'viewer ') run_viewer ;;
  'cuda ') build_cuda ;;
  'test ') run_test no ;;
  'test all') run_test yes ;;
  '--help ' | '-h ' | 'help ') usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
