// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cases.h"

#include <utility>

#include <fmt/format.h>

#include "sim/models/model_geometry.h"
#include "sim/predict/analytic.h"
#include "tests/support/twin_bridge.h"

namespace kvspan::test {

TraceSpec weights_spec(const std::vector<double>& keys, int prompt, std::vector<double> queries,
                       std::vector<double> values) {
  TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = static_cast<std::int64_t>(keys.size());
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  if (queries.empty()) queries.assign(keys.size(), 1.0);
  spec.layers.push_back({});
  spec.layers[0].q = std::move(queries);
  spec.layers[0].k = keys;
  spec.layers[0].v = std::move(values);
  return spec;
}

Trace weights(const std::vector<double>& keys, int prompt, std::vector<double> queries,
              std::vector<double> values) {
  return make_trace(weights_spec(keys, prompt, std::move(queries), std::move(values)));
}

Trace random_trace(int tokens, int prompt, std::uint64_t seed, int layers) {
  return make_trace(random_spec({.layers = layers,
                                 .tokens = tokens,
                                 .prompt_tokens = prompt,
                                 .query_heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 4,
                                 .seed = seed}));
}

std::vector<int> deaths(const Trace& trace, const std::string& policy, const EngineOptions& options,
                        int layer, int head) {
  const RunResult run = run_one(trace, policy, options);
  const auto d = run.ledger.deaths(layer, head);
  return {d.begin(), d.end()};
}

std::string off_closed_form(const Trace& trace, const std::string& policy,
                            const EngineOptions& options, const Accounting& accounting) {
  const Geometry geometry = geometry_of(trace, options);
  const Policy bound = make_policy(policy, geometry);
  if (!bound.closed_form) return "it has no closed form";
  const Prediction expected = predict(bound, geometry, accounting);
  const Metrics found = run_one(trace, policy, options, accounting).metrics;
  std::string out;
  const auto compare = [&](const std::string& name, auto measured, auto predicted) {
    if (measured != predicted)
      out += fmt::format("{}: measured {}, predicted {}; ", name, measured, predicted);
  };
  const auto compare_peaks = [&](const std::string& name, const PeakBytes& measured,
                                 const PeakBytes& predicted) {
    compare(name, measured.total, predicted.total);
    if (measured != predicted) out += fmt::format("{}: other parts or row; ", name);
  };
  compare("entry rows", found.entry_rows, expected.entry_rows);
  compare("footprint", found.footprint, expected.footprint);
  compare("peak of the KV cache", found.peak_kv, expected.peak_kv);
  compare("byte rows", found.byte_rows, expected.byte_rows.value());
  compare_peaks("peak bytes", found.peak_bytes, expected.peak_bytes);
  for (const auto& [layout, peak] : expected.layouts)
    compare_peaks(layout, found.layouts.at(layout), peak);
  return out;
}

Geometry llama_8b(std::int64_t prompt, std::int64_t generated) {
  return geometry_of(load_model("Llama-3.1-8B"), prompt, generated, 0, 2);
}

}  // namespace kvspan::test
