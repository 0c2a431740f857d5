// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cases.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/predict/analytic.h"
#include "tests/support/twin_bridge.h"

namespace kvspan::test {
namespace {

std::vector<double> flat(const Vectors& vectors) {
  std::vector<double> out;
  for (const auto& v : vectors) out.insert(out.end(), v.begin(), v.end());
  return out;
}

}  // namespace

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

Trace head_weights(const std::vector<std::vector<std::vector<double>>>& keys, int prompt,
                   int query_heads_per_head) {
  TraceSpec spec;
  const std::size_t heads = keys[0].size();
  const std::size_t tokens = keys[0][0].size();
  spec.meta.kv_heads = static_cast<int>(heads);
  spec.meta.query_heads = spec.meta.kv_heads * query_heads_per_head;
  spec.meta.head_dim = 1;
  spec.meta.tokens = static_cast<std::int64_t>(tokens);
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  for (const auto& layer : keys) {
    spec.layers.push_back({});
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t h = 0; h < heads; ++h) spec.layers.back().k.push_back(layer[h][t]);
    }
    spec.layers.back().q.assign(tokens * static_cast<std::size_t>(spec.meta.query_heads), 1.0);
  }
  return make_trace(spec);
}

Trace one_head(const Vectors& keys, int prompt, const Vectors& values, const Vectors& queries) {
  TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = static_cast<int>(keys.front().size());
  spec.meta.v_head_dim = values.empty() ? spec.meta.head_dim : static_cast<int>(values[0].size());
  spec.meta.tokens = static_cast<std::int64_t>(keys.size());
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  spec.layers[0].k = flat(keys);
  spec.layers[0].v = values.empty() ? flat(keys) : flat(values);
  spec.layers[0].q = queries.empty() ? std::vector<double>(flat(keys).size(), 0.0) : flat(queries);
  return make_trace(spec);
}

Vectors column(const std::vector<double>& numbers) {
  Vectors out;
  for (const double x : numbers) out.push_back({x});
  return out;
}

Trace logits(const std::vector<double>& keys, int prompt, const Vectors& values) {
  return one_head(column(keys), prompt, values, column(std::vector<double>(keys.size(), 1.0)));
}

Trace random_heads(int tokens, int prompt, int query_heads, int kv_heads, int layers,
                   std::uint64_t seed) {
  return make_trace(random_spec({.layers = layers,
                                 .tokens = tokens,
                                 .prompt_tokens = prompt,
                                 .query_heads = query_heads,
                                 .kv_heads = kv_heads,
                                 .seed = seed}));
}

EngineOptions chunk(RowIndex tokens) {
  EngineOptions options;
  options.chunk = tokens;
  return options;
}

std::vector<int> deaths(const Trace& trace, const std::string& policy, const EngineOptions& options,
                        int layer, int head) {
  const RunResult run = run_one(trace, policy, options);
  const auto d = run.ledger.deaths(layer, head);
  return {d.begin(), d.end()};
}

std::vector<int> kept(const RunResult& run, int layer, int head) {
  const auto deaths = run.ledger.deaths(layer, head);
  const RowIndex prompt = run.ledger.plan.prompt;
  std::vector<int> out;
  for (RowIndex t = 0; t < prompt; ++t) {
    if (static_cast<RowIndex>(deaths[static_cast<std::size_t>(t)]) > prompt)
      out.push_back(static_cast<int>(t));
  }
  return out;
}
std::vector<int> kept(const Trace& trace, const std::string& policy, int layer, int head) {
  return kept(run_one(trace, policy, {}), layer, head);
}

std::vector<std::size_t> kept_sizes(const Trace& trace, const std::string& policy,
                                    const EngineOptions& options) {
  const RunResult run = run_one(trace, policy, options);
  std::vector<std::size_t> out;
  for (int l = 0; l < run.ledger.layers; ++l) {
    for (int h = 0; h < run.ledger.heads; ++h) out.push_back(kept(run, l, h).size());
  }
  return out;
}

int alive_after(const std::vector<int>& deaths, int row) {
  int count = 0;
  for (int t = 0; t < row; ++t) count += deaths[static_cast<std::size_t>(t)] > row ? 1 : 0;
  return count;
}

std::vector<std::vector<std::vector<double>>> attention(const TraceSpec& spec, int layer) {
  const auto& l = spec.layers[static_cast<std::size_t>(layer)];
  const auto n = static_cast<std::size_t>(spec.meta.tokens);
  const auto heads = static_cast<std::size_t>(spec.meta.query_heads);
  const auto kv = static_cast<std::size_t>(spec.meta.kv_heads);
  const auto d = static_cast<std::size_t>(spec.meta.head_dim);
  std::vector<std::vector<std::vector<double>>> out(heads, std::vector<std::vector<double>>(n));
  for (std::size_t h = 0; h < heads; ++h) {
    for (std::size_t r = 0; r < n; ++r) {
      double sum = 0;
      for (std::size_t j = 0; j <= r; ++j) {
        double z = 0;
        for (std::size_t c = 0; c < d; ++c)
          z += l.q[(r * heads + h) * d + c] * l.k[(j * kv + h / (heads / kv)) * d + c];
        out[h][r].push_back(std::exp(z / std::sqrt(static_cast<double>(d))));
        sum += out[h][r].back();
      }
      for (double& p : out[h][r]) p /= sum;
    }
  }
  return out;
}

std::string refusal(const Trace& trace, const std::string& policy) {
  try {
    (void)run_one(trace, policy, {});
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
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

Geometry geometry(int layers, int query_heads, int kv_heads, int prompt, int generated) {
  Geometry g;
  g.model_layers = layers;
  for (int l = 0; l < layers; ++l) g.layer_ids.push_back(l);
  g.query_heads = query_heads;
  g.kv_heads = kv_heads;
  g.k_dim = g.v_dim = 128;
  g.prompt = g.evict_point = prompt;
  g.tokens = prompt + generated;
  return g;
}

std::vector<TokenCount> capacities(const Policy& policy, const Geometry& g) {
  const Rule& rule = policy.rules[0];
  const Sizing sizing = rule.sizing({0, g.evict_point, g.evict_point, g.prompt, {}});
  std::vector<TokenCount> out;
  for (int l = 0; l < g.layers(); ++l) {
    const LayerShape shape = g.shape(l, policy.per_query_head);
    for (int h = 0; h < shape.heads; ++h) out.push_back(rule.budget->capacity(shape, h, sizing));
  }
  return out;
}

Geometry llama_8b(std::int64_t prompt, std::int64_t generated) {
  return geometry_of(load_model("Llama-3.1-8B"), prompt, generated, 0, 2);
}

}  // namespace kvspan::test
