// SPDX-License-Identifier: Apache-2.0
// Whole replays of synthetic qkv traces: the cost of each further policy, and growth with tokens,
// layers, heads and policies. "full" and one policy that observes every row make the shared pass.
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "sim/policy/registry.h"
#include "sim/replay/engine.h"
#include "sim/replay/memory_plan.h"
#include "tests/support/trace_builder.h"

namespace {

using namespace kvspan;

Trace make(int layers, int tokens, int query_heads, int kv_heads) {
  test::TraceSpec spec = test::random_spec({.layers = layers,
                                            .tokens = tokens,
                                            .prompt_tokens = tokens / 4,
                                            .query_heads = query_heads,
                                            .kv_heads = kv_heads,
                                            .head_dim = 64,
                                            .dtype = Dtype::f16});
  for (test::LayerSpec& layer : spec.layers) layer.v.clear();  // retained mass; no output error
  return test::make_trace(spec);
}

void run(benchmark::State& state, const Trace& trace, const std::vector<std::string>& specs) {
  EngineOptions options;
  options.threads = 1;
  const Geometry geometry = geometry_of(trace, options);
  std::vector<Policy> policies;
  for (const std::string& spec : specs) policies.push_back(make_policy(spec, geometry));
  for (auto _ : state) benchmark::DoNotOptimize(replay(trace, policies, options));
  const TraceMeta& m = trace.meta();
  const double cells = 0.5 * static_cast<double>(m.tokens) * static_cast<double>(m.tokens) *
                       m.query_heads * m.layers;
  state.counters["cells/s"] =
      benchmark::Counter(cells, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bound MiB"] =
      static_cast<double>(plan_memory(trace, policies, options).bytes) / (1 << 20);
}

// What a run costs with one observer of all rows, and with one policy more of each kind.
void further_policy(benchmark::State& state, const std::string& more) {
  const Trace trace = make(1, 2048, 9, 3);
  std::vector<std::string> specs = {"h2o(budget=100%)"};
  if (!more.empty()) specs.push_back(more);
  run(state, trace, specs);
}

void tokens(benchmark::State& state) {
  run(state, make(1, static_cast<int>(state.range(0)), 9, 3),
      {"h2o(budget=20%)", "tova(budget=20%)"});
}
void layers(benchmark::State& state) {
  run(state, make(static_cast<int>(state.range(0)), 1024, 9, 3), {"h2o(budget=20%)"});
}
void heads(benchmark::State& state) {
  const int kv_heads = static_cast<int>(state.range(0));
  run(state, make(1, 1024, 4 * kv_heads, kv_heads), {"h2o(budget=20%)"});
}
void policies(benchmark::State& state) {
  std::vector<std::string> specs;
  for (int i = 0; i < state.range(0); ++i)
    specs.push_back("snapkv(budget=" + std::to_string(64 + i) + ")");
  run(state, make(1, 2048, 9, 3), specs);
}

BENCHMARK_CAPTURE(further_policy, none, std::string());
BENCHMARK_CAPTURE(further_policy, streaming_llm, std::string("streaming_llm(budget=20%)"));
BENCHMARK_CAPTURE(further_policy, snapkv, std::string("snapkv(budget=20%)"));
BENCHMARK_CAPTURE(further_policy, tova, std::string("tova(budget=20%)"));
BENCHMARK_CAPTURE(further_policy, h2o, std::string("h2o(budget=20%)"));
BENCHMARK(tokens)->RangeMultiplier(2)->Range(512, 4096);
BENCHMARK(layers)->RangeMultiplier(2)->Range(1, 4);
BENCHMARK(heads)->RangeMultiplier(2)->Range(1, 4);
BENCHMARK(policies)->RangeMultiplier(4)->Range(1, 64);

}  // namespace

BENCHMARK_MAIN();
