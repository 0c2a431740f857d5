// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/probes.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace kvspan {
namespace {

using nlohmann::json;

constexpr const char* kKey = "probes";
constexpr const char* kExpected = R"(a JSON list of {"begin", "end", "at", "rows"})";

std::vector<Probe> parse_probes(const MetaReader& meta, std::int64_t tokens) {
  std::vector<Probe> out;
  if (meta.find(kKey) == nullptr) return out;
  const json list = meta.parse(kKey, kExpected);
  if (!list.is_array() || list.empty()) meta.fail(kKey, "is " + json_text(list), kExpected);
  std::int64_t first = 0;
  for (const json& item : list) {
    Probe probe;
    const auto number = [&item](const char* key, std::int64_t* value) {
      return item.contains(key) && json_integer(item[key], value);
    };
    if (!item.is_object() || !number("begin", &probe.begin) || !number("end", &probe.end) ||
        !number("at", &probe.at) || !number("rows", &probe.rows)) {
      meta.fail(kKey, "holds " + json_text(item), kExpected);
    }
    const bool in_order = 0 <= probe.begin && probe.begin < probe.end && probe.end <= probe.at;
    if (!in_order || probe.at > tokens || probe.rows < 1 || probe.rows > kMaxTokens - first) {
      meta.fail(
          kKey, "holds " + json_text(item),
          fmt::format("0 <= begin < end <= at <= {}, the number of tokens, and rows", tokens));
    }
    probe.first = first;
    first += probe.rows;
    out.push_back(probe);
  }
  return out;
}

std::int64_t rows_of(const std::vector<Probe>& probes) {
  return probes.empty() ? 0 : probes.back().first + probes.back().rows;
}

}  // namespace

std::vector<Probe> probes_of(const Trace& trace) {
  return parse_probes(MetaReader(trace.tensors().metadata(), trace.name()), trace.meta().tokens);
}

ProbeLayer probe_layer(const Trace& trace, int layer) {
  const auto find = [&](const char* suffix) {
    return trace.tensors().find(layer_tensor(layer, suffix));
  };
  return {find("probe.q"), find("probe.k"), find("probe.norm")};
}

void check_probes(const TensorSet& set, const TraceMeta& meta, bool qkv, const std::string& file) {
  const std::vector<Probe> probes = parse_probes(MetaReader(set.metadata(), file), meta.tokens);
  const TensorChecker check(set, file);
  const std::int64_t rows = rows_of(probes);
  const bool norms = set.find(layer_tensor(0, "probe.norm")) != nullptr;
  for (int l = 0; l < meta.layers; ++l) {
    for (const char* suffix : {"probe.q", "probe.k", "probe.norm"}) {
      const std::string name = layer_tensor(l, suffix);
      if (set.find(name) == nullptr) continue;
      if (probes.empty()) check.fail(name, "needs the passes; expected metadata key 'probes'");
      if (!qkv) check.fail(name, "replayed rows beside scores; expected q and k");
    }
    if (probes.empty()) continue;
    const Dtypes types = {Dtype::f32, Dtype::f16, Dtype::bf16};
    (void)check.require(layer_tensor(l, "probe.q"), {rows, meta.query_heads, meta.head_dim}, types);
    (void)check.require(layer_tensor(l, "probe.k"), {rows, meta.kv_heads, meta.head_dim}, types);
    const std::string norm = layer_tensor(l, "probe.norm");
    if (norms) {
      (void)check.require(norm, {rows}, {Dtype::f32});
    } else if (set.find(norm) != nullptr) {
      check.fail(norm, "is present; layer 0 lacks it, expected all or none");
    }
  }
  if (!probes.empty()) (void)check.find("probe_ids", {rows}, {Dtype::i32});
}

}  // namespace kvspan
