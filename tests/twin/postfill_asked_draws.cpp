// SPDX-License-Identifier: Apache-2.0
// Random cases of methods that look at replayed rows, at values, or at numbers in a file.
#include <algorithm>

#include <fmt/format.h>

#include "tests/twin/postfill_draws.h"

namespace kvspan::test {
namespace {

using Values = std::vector<double>;

// Rows that ask for the context from `begin` on in so many passes; a question may follow it.
void ask(Random& r, Drawn& d, int begin, int passes) {
  const int point =
      (d.plan.evict_point > 0 ? d.plan.evict_point : d.prompt()) - (coin(r, 3) ? pick(r, 1, 2) : 0);
  int rows = 0;
  for (int i = 0; i < passes; ++i) {
    const int end = i + 1 < passes ? begin + (point - begin) / (passes - i) : point;
    d.tables.probes.push_back({begin, end, point, pick(r, 1, 6), rows});
    rows += d.tables.probes.back().rows;
    begin = end;
  }
  const auto fill = [&](Values& x, int width) {
    for (int i = 0; i < rows * width; ++i)
      x.push_back(d.ties ? pick(r, -2, 2) : pick(r, -4000, 4000) / 2048.0);
  };
  for (int l = 0; l < d.meta.layers; ++l) {
    fill(d.tables.probe_q.emplace_back(), d.meta.query_heads * d.meta.head_dim);
    fill(d.tables.probe_k.emplace_back(), d.meta.kv_heads * d.meta.head_dim);
    Values& norm = d.tables.probe_norm.emplace_back();
    for (int i = 0; i < rows; ++i) norm.push_back(pick(r, 4, 40) / 8.0);
  }
}

void some_projections(Random& r, Drawn& d) {
  const int hidden = pick(r, 2, 6);
  for (LayerSpec& layer : d.trace.layers) {
    for (int i = 0; i < hidden * d.meta.query_heads * d.meta.v_head_dim; ++i)
      layer.wo.push_back(pick(r, -8, 8) * 0.125);
    d.tables.wo.push_back(layer.wo);
  }
}

std::string write_numbers(const std::string& tensor, const std::vector<std::int64_t>& shape,
                          const Values& x, const std::string& folder) {
  static int counter = 0;
  const std::string path = fmt::format("{}/numbers{}.safetensors", folder, counter++);
  TensorMap tensors;
  tensors[tensor] = {Dtype::f32, shape, encode(x, Dtype::f32)};
  write_tensors(path, {{"format", "test"}}, tensors);
  return path;
}

void some_question(Random& r, Drawn& d) {
  const int point = d.plan.evict_point > 0 ? d.plan.evict_point : d.prompt();
  const int begin = point - pick(r, 1, 6);
  d.trace.meta.spans = {{"question", begin, pick(r, begin + 1, static_cast<int>(d.meta.tokens))}};
}

void kvzip(Random& r, Drawn& d, const std::string&) {
  ask(r, d, pick(r, 0, 5), pick(r, 1, 3));
  d.set("budget", some_budget(r, d));
  d.set("cut", one_of(r, {"model", "model", "layer", "head"}));
  if (coin(r)) d.set("sinks", pick(r, 0, 6));
  if (!coin(r)) return;
  d.set("plus", "true");
  some_projections(r, d);
}

void vase(Random& r, Drawn& d, const std::string&) {
  const int buffer = pick(r, 2, 5), budget = buffer * pick(r, 2, 4);
  d.set("budget", budget);
  d.set("buffer", buffer);
  d.set("sinks", pick(r, 0, 3));
  d.set("seed", pick(r, 0, 1000));
  d.plan.evict_point = -1;
  if (d.meta.head_dim == d.meta.v_head_dim && coin(r, 3)) {
    d.set("form", "dkv");
    d.set("sketch", pick(r, 1, 8));
    return;
  }
  // Variances that tie on paper need not tie in any arithmetic.
  d.set("size", one_of(r, {"range", d.ties ? "range" : "variance", "l2"}));
  d.set("kernel", one_of(r, {"1", "3", "5"}));
  if (coin(r)) d.set("large", pick(r, 0, budget - buffer));
}

void trimkv(Random& r, Drawn& d, const std::string& folder) {
  for (int i = 0; i < d.meta.layers * d.meta.kv_heads * static_cast<int>(d.meta.tokens); ++i)
    d.tables.scores.push_back(-pick(r, 0, 40) / 32.0);
  d.set_file("file", write_numbers("log_beta", {d.meta.layers, d.meta.kv_heads, d.meta.tokens},
                                   d.tables.scores, folder));
  d.set("budget", some_budget(r, d));
  d.set("buffer", pick(r, 1, 8));
  if (coin(r)) d.set("recent", pick(r, 0, 5));
  if (coin(r)) d.set("keys", "true");
}

void under_lukv(Random& r, Drawn& d, const std::string& folder) {
  for (int i = 0; i < 99 * d.meta.layers * d.meta.kv_heads; ++i)
    d.tables.curve.push_back(pick(r, 0, 64) / 64.0);
  const std::string path =
      write_numbers("curve", {99, d.meta.layers, d.meta.kv_heads}, d.tables.curve, folder);
  d.parameters["lukv"] = "1";
  d.before = fmt::format("lukv(file=\"{}\")+", path);
  d.set("budget", some_budget(r, d));
}

}  // namespace

Trace traced(const Drawn& d) {
  Metadata metadata = make_metadata(d.trace);
  TensorMap tensors = make_tensors(d.trace);
  std::string list;
  std::int64_t rows = 0;
  for (const auto& p : d.tables.probes) {
    list += fmt::format("{}{{\"begin\":{},\"end\":{},\"at\":{},\"rows\":{}}}",
                        list.empty() ? "" : ",", p.begin, p.end, p.at, p.rows);
    rows += p.rows;
  }
  if (rows > 0) metadata["probes"] = "[" + list + "]";
  for (std::size_t l = 0; l < d.tables.probe_q.size(); ++l) {
    const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape,
                         const Values& x) {
      tensors[fmt::format("layers.{}.probe.{}", l, name)] = {Dtype::f32, shape,
                                                             encode(x, Dtype::f32)};
    };
    add("q", {rows, d.meta.query_heads, d.meta.head_dim}, d.tables.probe_q[l]);
    add("k", {rows, d.meta.kv_heads, d.meta.head_dim}, d.tables.probe_k[l]);
    add("norm", {rows}, d.tables.probe_norm[l]);
  }
  return Trace::from_tensors(TensorSet::from_memory(metadata, std::move(tensors)), d.trace.name);
}

const Draws& asked_draws() {
  static const Draws all = {
      {"kvzip", kvzip},
      {"kvcompose",
       [](Random& r, Drawn& d, const std::string&) {
         ask(r, d, 0, 1);
         d.set("budget", some_budget(r, d));
         d.set("form", one_of(r, {"layers", "heads"}));
       }},
      {"finch",
       [](Random& r, Drawn& d, const std::string&) {
         some_question(r, d);
         d.set("budget", some_budget(r, d));
         if (coin(r, 3)) d.set("window", pick(r, 1, 8));
         d.set("normalise", one_of(r, {"true", "false"}));
         if (d.trace.meta.rope && coin(r)) d.set("positions", "cache");
       }},
      {"vase", vase},
      {"trimkv", trimkv},
      {"expected_attention",
       [](Random& r, Drawn& d, const std::string& folder) {
         under_lukv(r, d, folder);
         d.set("sinks", pick(r, 0, 4));
         d.set("future", pick(r, 1, 9));
       }},
      {"keydiff", [](Random& r, Drawn& d, const std::string& folder) { under_lukv(r, d, folder); }},
      {"caote",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d, one_of(r, {"snapkv", "snapkv", "observed_attention", "h2o"}), true);
         d.set("fast", one_of(r, {"false", "false", "true"}));
       }},
  };
  return all;
}

}  // namespace kvspan::test
