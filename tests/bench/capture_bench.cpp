// SPDX-License-Identifier: Apache-2.0
// Prefill of a real checkpoint on the CPU, against what the machine can do: the FLOP/s of an Eigen
// GEMM and of a loop of fused multiply-adds, on one thread, measured in turns with it.
//   kvspan_capture_bench [--model=DIR|FILE.gguf] [Google Benchmark's options]
// Counters: tokens/s; Gflop/s (dense products, causal attention, head); eigen and peak in Gflop/s;
// of_eigen and of_peak, the share of them that the prefill reaches.
#include <algorithm>
#include <chrono>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <hwy/targets.h>

#include "tests/bench/eigen_twin.h"
#include "tracegen/forward/runner.h"

namespace {

using namespace kvspan::tracegen;
using kvspan::bench::EigenTwin;

std::string model_path = KVSPAN_MODELS_DIR "/minimind2-small";

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const EigenTwin& eigen() {
  const bool avx512 = (hwy::SupportedTargets() & HWY_AVX3) != 0;
  return avx512 ? kvspan::bench::kEigenAvx512 : kvspan::bench::kEigenAvx2;
}

// Best of the calls: what the machine does when nobody disturbs it.
struct Best {
  double flops_per_second = 0;
  template <class Work>
  void time(double flops, Work work) {
    const double begin = seconds();
    work();
    flops_per_second = std::max(flops_per_second, flops / (seconds() - begin));
  }
};

double prefill_flops(const ModelSpec& s, double tokens) {
  const double heads = double(s.query_heads) * s.head_dim;
  const double kv = double(s.kv_heads) * s.head_dim;
  const double dense = s.hidden * (2 * heads + 2 * kv + 3.0 * s.intermediate);
  const double attention = 2 * heads * (tokens + 1) / 2;
  return 2 * tokens * (s.layers * (dense + attention) + double(s.hidden) * double(s.vocabulary));
}

void prefill(benchmark::State& state) {
  const Checkpoint checkpoint = Checkpoint::open(model_path);
  const ModelSpec& spec = checkpoint.spec();
  const std::int64_t tokens = state.range(0);
  const auto runner = make_cpu_runner(checkpoint, {.tokens = tokens, .scratch = {}, .threads = 1});
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int32_t>((i * 7919 + 13) % static_cast<std::size_t>(spec.vocabulary));
  }
  class QkvHook final : public AttentionHook {
    Emit emit(int) override { return {.qkv = true}; }
  } hook;
  std::vector<float> hidden(static_cast<std::size_t>(tokens * spec.hidden));

  constexpr std::int64_t kRows = 1024;
  constexpr int kDim = 1024;
  std::vector<float> a(kRows * kDim, 1.0F), b(kRows * kDim, 0.5F), c(kRows * kRows);
  constexpr std::int64_t kSteps = 4'000'000;
  const double flops = prefill_flops(spec, static_cast<double>(tokens));
  Best ours, gemm, peak;
  for (auto _ : state) {
    ours.time(flops, [&] {
      runner->embed(ids, hidden);
      for (int l = 0; l < spec.layers; ++l) runner->layer(l, 0, hidden, hook);
      runner->head(hidden, [](std::int64_t, std::int64_t, const float* logits) {
        benchmark::DoNotOptimize(logits);
      });
    });
    state.PauseTiming();
    for (int i = 0; i < 5; ++i) {
      gemm.time(2.0 * kRows * kRows * kDim,
                [&] { eigen().logits(a.data(), kRows, kDim, b.data(), kRows, c.data(), kRows); });
      int lanes = 0;
      const double begin = seconds();
      benchmark::DoNotOptimize(lanes = eigen().fma_loop(kSteps));
      peak.flops_per_second =
          std::max(peak.flops_per_second,
                   2.0 * lanes * kvspan::bench::kFmaChains * kSteps / (seconds() - begin));
    }
    state.ResumeTiming();
  }
  state.counters["tokens/s"] = static_cast<double>(tokens) * ours.flops_per_second / flops;
  state.counters["Gflop/s"] = ours.flops_per_second / 1e9;
  state.counters["eigen"] = gemm.flops_per_second / 1e9;
  state.counters["peak"] = peak.flops_per_second / 1e9;
  state.counters["of_eigen"] = ours.flops_per_second / gemm.flops_per_second;
  state.counters["of_peak"] = ours.flops_per_second / peak.flops_per_second;
}
BENCHMARK(prefill)->Arg(512)->Arg(2048)->Arg(8192)->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.starts_with("--model=")) continue;
    model_path = argument.substr(8);
    std::copy(argv + i + 1, argv + argc, argv + i);
    --argc;
    --i;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
}
