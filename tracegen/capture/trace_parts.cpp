// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/trace_parts.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"

namespace kvspan::tracegen {

using nlohmann::json;

namespace {

std::string number(double value) { return fmt::format("{}", value); }

}  // namespace

std::int64_t known_tokens(const CaptureOptions& options) {
  return static_cast<std::int64_t>(options.token_ids.size());
}

std::int64_t hidden_rows(const CaptureOptions& options) {
  return known_tokens(options) + (options.replay ? options.replay->rows() : 0);
}

std::int64_t most_tokens(const CaptureOptions& options) {
  return known_tokens(options) + options.generate;
}

std::vector<int> stored_layers(const ModelSpec& model, const CaptureOptions& options) {
  if (!options.layers.empty()) return options.layers;
  std::vector<int> all(static_cast<std::size_t>(model.layers));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<std::int64_t> prompt_passes(const CaptureOptions& options) {
  std::vector<std::int64_t> ends;
  const std::int64_t chunk = options.chunk > 0 ? options.chunk : options.prompt;
  for (std::int64_t end = chunk; end < options.prompt; end += chunk) ends.push_back(end);
  ends.push_back(options.prompt);
  return ends;
}

std::vector<std::int64_t> score_rows(const RowChoice& choice, std::int64_t prompt,
                                     std::int64_t tokens) {
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < tokens; ++row) {
    const bool kept = choice.last > 0 ? row >= prompt - choice.last : row % choice.every == 0;
    if (kept || row >= prompt - 1) rows.push_back(row);
  }
  return rows;
}

std::int64_t stored_top_k(const CaptureOptions& options) {
  return std::min<std::int64_t>(options.scores->top_k, most_tokens(options));
}

Metadata make_metadata(const ModelSpec& model, const CaptureOptions& options, std::int64_t tokens,
                       bool scores) {
  const std::vector<int> layers = stored_layers(model, options);
  Metadata out{{"format", "kvspan.trace"},
               {"version", "1"},
               {"layers", std::to_string(layers.size())},
               {"query_heads", std::to_string(model.query_heads)},
               {"kv_heads", std::to_string(model.kv_heads)},
               {"head_dim", std::to_string(model.head_dim)},
               {"tokens", std::to_string(tokens)},
               {"prompt_tokens", std::to_string(options.prompt)},
               {"score_scale", number(model.score_scale())},
               {"model", model.name},
               {"source", options.source},
               {"text", options.text},
               {"licence", options.licence},
               {"created_by", fmt::format("kvspan {}", build_info().version)}};
  std::erase_if(out, [](const auto& entry) { return entry.second.empty(); });
  if (static_cast<int>(layers.size()) != model.layers) {
    out["model_layers"] = std::to_string(model.layers);
    out["layer_ids"] = json(layers).dump();
  }
  if (model.rope.dim > 0) {
    out["rope_theta"] = number(model.rope.theta);
    out["rope_dim"] = std::to_string(model.rope.dim);
    out["rope_layout"] = model.rope.interleaved ? "interleaved" : "half";
    if (!model.rope_scaling.empty()) out["rope_scaling"] = model.rope_scaling;
  }
  std::vector<std::int64_t> windows;
  for (const int l : layers) windows.push_back(model.window(l));
  if (std::any_of(windows.begin(), windows.end(), [](std::int64_t w) { return w > 0; }))
    out["sliding_window"] = json(windows).dump();
  if (scores && options.scores->column_mass) out["passes"] = json(prompt_passes(options)).dump();
  if (!scores && options.replay) {
    json probes = json::array();
    for (const ReplayPass& pass : options.replay->passes) {
      probes.push_back({{"begin", pass.begin},
                        {"end", pass.end},
                        {"at", options.replay->at},
                        {"rows", pass.ids.size()}});
    }
    out["probes"] = probes.dump();
  }
  if (!options.special_ids.empty()) out["special_ids"] = json(options.special_ids).dump();
  if (!options.spans.empty()) {
    json spans = json::array();
    for (const Span& span : options.spans)
      spans.push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
    out["spans"] = spans.dump(-1, ' ', false, json::error_handler_t::replace);
  }
  for (auto& [key, value] : out) value = valid_utf8(value);
  return out;
}

std::string tensor_name(int stored_layer, const char* name) {
  return fmt::format("layers.{}.{}", stored_layer, name);
}

std::vector<StoredTensor> qkv_tensors(const ModelSpec& model, const CaptureOptions& options,
                                      std::int64_t tokens, int stored_layer) {
  const auto heads = [&](const char* name, std::int64_t count) {
    return StoredTensor{
        {tensor_name(stored_layer, name), options.dtype, {tokens, count, model.head_dim}}};
  };
  std::vector<StoredTensor> out{heads("q", model.query_heads), heads("k", model.kv_heads),
                                heads("v", model.kv_heads)};
  if (options.wo) {
    out.push_back({{tensor_name(stored_layer, "wo"),
                    options.dtype,
                    {model.hidden, std::int64_t{model.query_heads} * model.head_dim}}});
  }
  if (options.replay) {
    const std::int64_t rows = options.replay->rows();
    const auto asked = [&](const char* name, std::int64_t count) {
      return StoredTensor{
          {tensor_name(stored_layer, name), options.dtype, {rows, count, model.head_dim}}};
    };
    out.push_back(asked("probe.q", model.query_heads));
    out.push_back(asked("probe.k", model.kv_heads));
    if (options.replay->norms)
      out.push_back({{tensor_name(stored_layer, "probe.norm"), Dtype::f32, {rows}}});
  }
  return out;
}

std::vector<StoredTensor> score_tensors(const ModelSpec& model, const CaptureOptions& options,
                                        std::int64_t tokens, int stored_layer) {
  const std::int64_t heads = model.query_heads;
  const std::int64_t k = stored_top_k(options);
  const auto rows =
      static_cast<std::int64_t>(score_rows(options.scores->rows, options.prompt, tokens).size());
  std::vector<StoredTensor> out{
      {{tensor_name(stored_layer, "scores.prob"), options.dtype, {rows, heads, k}}},
      {{tensor_name(stored_layer, "scores.index"), Dtype::i32, {rows, heads, k}}},
      {{tensor_name(stored_layer, "scores.lse"), Dtype::f32, {rows, heads}}},
      {{tensor_name(stored_layer, "scores.rows"), Dtype::i32, {rows}}}};
  if (options.scores->column_mass) {
    const auto passes = static_cast<std::int64_t>(prompt_passes(options).size());
    out.push_back(
        {{tensor_name(stored_layer, "scores.column_mass"), Dtype::f32, {passes, heads, tokens}},
         options.prompt});
  }
  return out;
}

TraceParts make_parts(const ModelSpec& model, const CaptureOptions& options, std::int64_t tokens,
                      std::int64_t text_bytes, bool scores) {
  TraceParts out;
  out.metadata = make_metadata(model, options, tokens, scores);
  out.common = {{{"token_ids", Dtype::i32, {tokens}}}, {{"nll", Dtype::f32, {tokens}}}};
  if (text_bytes >= 0) {
    out.common.push_back({{"token_text", Dtype::u8, {text_bytes}}});
    out.common.push_back({{"token_text_offsets", Dtype::i64, {tokens + 1}}});
  }
  if (!scores && options.replay)
    out.common.push_back({{"probe_ids", Dtype::i32, {options.replay->rows()}}});
  const auto layers = static_cast<int>(stored_layers(model, options).size());
  for (int l = 0; l < layers; ++l) {
    out.layers.push_back(scores ? score_tensors(model, options, tokens, l)
                                : qkv_tensors(model, options, tokens, l));
  }
  return out;
}

std::vector<Product> products(const ModelSpec& model, const CaptureOptions& options,
                              const json& journal) {
  std::vector<Product> out;
  for (const bool scores : {false, true}) {
    if (scores ? !options.scores.has_value() : !options.qkv) continue;
    out.push_back({make_parts(model, options, journal["tokens"], journal["text_bytes"], scores),
                   scores && options.qkv ? options.scores_out : options.out});
  }
  return out;
}

}  // namespace kvspan::tracegen
