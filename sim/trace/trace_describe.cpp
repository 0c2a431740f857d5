// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <numeric>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/json_fields.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_meta.h"
#include "sim/trace/trace_tools.h"

namespace kvspan {

using nlohmann::json;

namespace {

json describe_scores(const Trace& trace) {
  json layers = json::array();
  for (int l = 0; l < trace.meta().layers; ++l) {
    const ScoreLayer& scores = trace.scores(l);
    json layer{{"layer", trace.meta().layer_ids[static_cast<std::size_t>(l)]},
               {"rows", scores.rows.size()},
               {"first_row", scores.rows.front()},
               {"last_row", scores.rows.back()},
               {"layout", scores.dense != nullptr ? "dense" : "largest"},
               {"kept", nullptr},
               {"column_mass", scores.column_mass != nullptr}};
    if (scores.prob != nullptr) layer["kept"] = scores.prob->shape[2];
    layers.push_back(std::move(layer));
  }
  return layers;
}

json describe_rope(const Trace& trace) {
  const std::optional<Rope>& rope = trace.meta().rope;
  if (!rope) return nullptr;
  json out{{"theta", rope->theta},
           {"dim", rope->dim},
           {"layout", rope->interleaved ? "interleaved" : "half"},
           {"scaling", nullptr}};
  const auto scaling = trace.tensors().metadata().find("rope_scaling");
  if (scaling != trace.tensors().metadata().end())
    out["scaling"] = parse_json_strict(scaling->second);
  return out;
}

}  // namespace

std::string cache_note(const Trace& trace) {
  const TraceMeta& meta = trace.meta();
  const std::vector<std::int64_t> elements =
      read_cache_elements(trace.tensors().metadata(), meta.layers, trace.name());
  if (elements.empty()) return {};
  const std::int64_t own = std::accumulate(elements.begin(), elements.end(), std::int64_t{0});
  const std::int64_t stored =
      std::int64_t{meta.layers} * meta.kv_heads * (meta.head_dim + meta.v_head_dim);
  return fmt::format(
      "bytes are those of K and V as attention reads them, {} elements a token in {} layers; the "
      "model's own cache holds {}, {:.3g} % of them",
      stored, meta.layers, own, 100.0 * static_cast<double>(own) / static_cast<double>(stored));
}

json describe_trace(const Trace& trace) {
  const TraceMeta& meta = trace.meta();
  const TensorSet& set = trace.tensors();
  const auto has = [&set](const char* name) { return set.find(name) != nullptr; };
  json out{{"path", trace.name()},
           {"version", 1},
           {"kind", trace.is_qkv() ? "qkv" : "scores"},
           {"layers", meta.layers},
           {"model_layers", meta.model_layers},
           {"layer_ids", meta.layer_ids},
           {"query_heads", meta.query_heads},
           {"kv_heads", meta.kv_heads},
           {"head_dim", meta.head_dim},
           {"v_head_dim", meta.v_head_dim},
           {"tokens", meta.tokens},
           {"prompt_tokens", meta.prompt_tokens},
           {"score_scale", meta.score_scale},
           {"logit_softcap", nullptr},
           {"sliding_window", meta.sliding_window},
           {"rope", describe_rope(trace)},
           {"passes", meta.passes},
           {"special_ids", meta.special_ids},
           {"model", meta.model},
           {"source", meta.source},
           {"text", meta.text},
           {"licence", meta.licence},
           {"created_by", meta.created_by},
           {"has_v", trace.has_v()},
           {"has_wo", trace.has_wo()},
           {"has_sink_logits", false},
           {"has_token_ids", has("token_ids")},
           {"has_token_text", has("token_text")},
           {"has_nll", has("nll")}};
  out["cache_elements"] =
      read_cache_elements(trace.tensors().metadata(), meta.layers, trace.name());
  if (meta.logit_softcap != 0) out["logit_softcap"] = meta.logit_softcap;
  for (int l = 0; l < meta.layers; ++l) {
    if (has(layer_tensor(l, "sink_logits").c_str())) out["has_sink_logits"] = true;
  }
  const TensorView* values = trace.is_qkv()                     ? trace.q(0)
                             : trace.scores(0).dense != nullptr ? trace.scores(0).dense
                                                                : trace.scores(0).prob;
  out["dtype"] = dtype_name(values->dtype);
  out["scores"] = trace.is_qkv() ? json(nullptr) : describe_scores(trace);
  out["spans"] = json::array();
  for (const Span& span : meta.spans) {
    out["spans"].push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
  }
  out["probes"] = json::array();
  for (const Probe& probe : probes_of(trace)) {
    out["probes"].push_back(
        {{"begin", probe.begin}, {"end", probe.end}, {"at", probe.at}, {"rows", probe.rows}});
  }
  std::uint64_t tensor_bytes = 0;
  out["tensors"] = json::array();
  for (const auto& [name, tensor] : set.tensors()) {
    tensor_bytes += tensor.bytes.size();
    out["tensors"].push_back({{"name", name},
                              {"dtype", dtype_name(tensor.dtype)},
                              {"shape", tensor.shape},
                              {"bytes", tensor.bytes.size()}});
  }
  out["tensor_bytes"] = tensor_bytes;
  out["files"] = json::array();
  for (const std::filesystem::path& file : set.files()) {
    std::error_code error;
    const std::uintmax_t bytes = std::filesystem::file_size(file, error);
    out["files"].push_back(
        {{"path", file.string()}, {"bytes", error ? json(nullptr) : json(bytes)}});
  }
  out["metadata"] = set.metadata();
  return out;
}

}  // namespace kvspan
