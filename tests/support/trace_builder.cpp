// SPDX-License-Identifier: Apache-2.0
#include "tests/support/trace_builder.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <random>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace kvspan::test {

namespace {

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

// Rounds to `bits` significant bits above the smallest exponent, to nearest even.
double rounded(double value, int bits, int smallest_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), smallest_exponent);
  const double quantum = std::ldexp(1.0, exponent - bits + 1);
  return std::nearbyint(value / quantum) * quantum;
}

// Written from the definition of the format, without the bit tricks of the code under test.
std::uint16_t half_bits(double value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  if (std::isnan(value)) return 0x7E00;
  const double magnitude = std::abs(rounded_to(value, Dtype::f16));
  int field = 0x7C00;
  if (std::isfinite(magnitude)) {
    const int exponent = magnitude < std::ldexp(1.0, -14) ? -15 : std::ilogb(magnitude);
    field = exponent == -15 ? static_cast<int>(std::ldexp(magnitude, 24))
                            : (exponent + 15) * 1024 +
                                  static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
  }
  return static_cast<std::uint16_t>(sign | field);
}

std::uint16_t bfloat_bits(double value) {
  const auto number = static_cast<float>(rounded_to(value, Dtype::bf16));
  std::uint32_t bits = 0;
  std::memcpy(&bits, &number, sizeof(bits));
  return static_cast<std::uint16_t>(bits >> 16U);
}

}  // namespace

double rounded_to(double value, Dtype dtype) {
  switch (dtype) {
    case Dtype::f16: {
      const double near = rounded(value, 11, -14);
      return std::abs(near) > 65504 ? std::copysign(std::numeric_limits<double>::infinity(), near)
                                    : near;
    }
    case Dtype::bf16:
      return static_cast<float>(rounded(value, 8, -126));
    default:
      return static_cast<float>(value);
  }
}

std::vector<std::byte> encode(const std::vector<double>& values, Dtype dtype) {
  if (dtype == Dtype::f32) return bytes_of(std::vector<float>(values.begin(), values.end()));
  assert(dtype == Dtype::f16 || dtype == Dtype::bf16);
  std::vector<std::uint16_t> words;
  for (const double value : values) {
    words.push_back(dtype == Dtype::f16 ? half_bits(value) : bfloat_bits(value));
  }
  return bytes_of(words);
}

TraceMeta completed(const TraceSpec& spec) {
  TraceMeta meta = spec.meta;
  if (meta.layers == 0) meta.layers = static_cast<int>(spec.layers.size());
  if (meta.model_layers == 0) meta.model_layers = meta.layers;
  if (meta.layer_ids.empty() && meta.model_layers == meta.layers) {
    for (int l = 0; l < meta.layers; ++l) meta.layer_ids.push_back(l);
  }
  if (meta.query_heads == 0) meta.query_heads = 1;
  if (meta.kv_heads == 0) meta.kv_heads = meta.query_heads;
  if (meta.head_dim == 0) meta.head_dim = 1;
  if (meta.v_head_dim == 0) meta.v_head_dim = meta.head_dim;
  if (meta.prompt_tokens == 0) meta.prompt_tokens = meta.tokens;
  if (meta.score_scale == 0) meta.score_scale = 1 / std::sqrt(meta.head_dim);
  return meta;
}

Metadata base_metadata(const TraceMeta& meta) {
  using nlohmann::json;
  Metadata out{{"format", "kvspan.trace"},
               {"version", "1"},
               {"layers", std::to_string(meta.layers)},
               {"model_layers", std::to_string(meta.model_layers)},
               {"layer_ids", json(meta.layer_ids).dump()},
               {"query_heads", std::to_string(meta.query_heads)},
               {"kv_heads", std::to_string(meta.kv_heads)},
               {"head_dim", std::to_string(meta.head_dim)},
               {"tokens", std::to_string(meta.tokens)},
               {"prompt_tokens", std::to_string(meta.prompt_tokens)},
               {"score_scale", fmt::format("{}", meta.score_scale)}};
  if (meta.v_head_dim != meta.head_dim) out["v_head_dim"] = std::to_string(meta.v_head_dim);
  if (meta.logit_softcap != 0) out["logit_softcap"] = fmt::format("{}", meta.logit_softcap);
  if (!meta.sliding_window.empty()) out["sliding_window"] = json(meta.sliding_window).dump();
  if (!meta.passes.empty()) out["passes"] = json(meta.passes).dump();
  if (!meta.special_ids.empty()) out["special_ids"] = json(meta.special_ids).dump();
  if (meta.rope) {
    out["rope_theta"] = fmt::format("{}", meta.rope->theta);
    out["rope_dim"] = std::to_string(meta.rope->dim);
    out["rope_layout"] = meta.rope->interleaved ? "interleaved" : "half";
  }
  if (!meta.spans.empty()) {
    json spans = json::array();
    for (const Span& span : meta.spans) {
      spans.push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
    }
    out["spans"] = spans.dump();
  }
  const std::pair<const char*, const std::string*> provenance[] = {
      {"model", &meta.model},
      {"source", &meta.source},
      {"text", &meta.text},
      {"licence", &meta.licence},
      {"created_by", &meta.created_by}};
  for (const auto& [key, text] : provenance) {
    if (!text->empty()) out[key] = *text;
  }
  return out;
}

Metadata make_metadata(const TraceSpec& spec) {
  Metadata metadata = base_metadata(completed(spec));
  for (const auto& [key, value] : spec.extra) metadata[key] = value;
  for (const std::string& key : spec.without) metadata.erase(key);
  return metadata;
}

TensorMap make_tensors(const TraceSpec& spec) {
  const TraceMeta meta = completed(spec);
  TensorMap out;
  const auto add = [&out](const std::string& name, Dtype dtype, std::vector<std::int64_t> shape,
                          std::vector<std::byte> bytes) {
    if (!bytes.empty()) out[name] = {dtype, std::move(shape), std::move(bytes)};
  };
  // The last extent (or the one that is free) follows from the number of values.
  const auto extent = [](std::size_t values, std::int64_t others) {
    return others == 0 ? 0 : static_cast<std::int64_t>(values) / others;
  };
  const std::int64_t heads = meta.query_heads;
  for (std::size_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    const std::string prefix = fmt::format("layers.{}.", l);
    const auto rows = static_cast<std::int64_t>(layer.rows.size());
    add(prefix + "q", spec.dtype, {meta.tokens, heads, meta.head_dim}, encode(layer.q, spec.dtype));
    add(prefix + "k", spec.dtype, {meta.tokens, meta.kv_heads, meta.head_dim},
        encode(layer.k, spec.dtype));
    add(prefix + "v", spec.dtype, {meta.tokens, meta.kv_heads, meta.v_head_dim},
        encode(layer.v, spec.dtype));
    add(prefix + "sink_logits", spec.dtype, {heads}, encode(layer.sink_logits, spec.dtype));
    const std::int64_t width = heads * meta.v_head_dim;
    add(prefix + "wo", spec.dtype, {extent(layer.wo.size(), width), width},
        encode(layer.wo, spec.dtype));
    add(prefix + "scores.rows", Dtype::i64, {rows}, bytes_of(layer.rows));
    const std::int64_t kept = extent(layer.prob.size(), rows * heads);
    add(prefix + "scores.prob", spec.score_dtype, {rows, heads, kept},
        encode(layer.prob, spec.score_dtype));
    add(prefix + "scores.index", Dtype::i32, {rows, heads, kept}, bytes_of(layer.index));
    add(prefix + "scores.dense", spec.score_dtype, {rows, heads, meta.tokens},
        encode(layer.dense, spec.score_dtype));
    add(prefix + "scores.lse", Dtype::f32, {rows, heads}, encode(layer.lse, Dtype::f32));
    add(prefix + "scores.column_mass", Dtype::f32,
        {extent(layer.column_mass.size(), heads * meta.tokens), heads, meta.tokens},
        encode(layer.column_mass, Dtype::f32));
  }
  add("token_ids", Dtype::i32, {static_cast<std::int64_t>(spec.token_ids.size())},
      bytes_of(spec.token_ids));
  add("nll", Dtype::f32, {static_cast<std::int64_t>(spec.nll.size())},
      encode(spec.nll, Dtype::f32));
  if (!spec.token_text.empty()) {
    std::string text;
    std::vector<std::int64_t> offsets{0};
    for (const std::string& piece : spec.token_text) {
      text += piece;
      offsets.push_back(static_cast<std::int64_t>(text.size()));
    }
    const auto bytes = std::as_bytes(std::span(text));
    add("token_text", Dtype::u8, {static_cast<std::int64_t>(text.size())},
        {bytes.begin(), bytes.end()});
    add("token_text_offsets", Dtype::i64, {static_cast<std::int64_t>(offsets.size())},
        bytes_of(offsets));
  }
  return out;
}

Trace make_trace(const TraceSpec& spec) {
  return Trace::from_tensors(TensorSet::from_memory(make_metadata(spec), make_tensors(spec)),
                             spec.name);
}

void write_tensors(const std::filesystem::path& path, const Metadata& metadata,
                   const TensorMap& tensors) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, tensor] : tensors) entries.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(path, metadata, entries);
  for (const auto& [name, tensor] : tensors) writer.write(name, 0, tensor.bytes);
  writer.finish();
}

void write_trace(const std::filesystem::path& path, const TraceSpec& spec) {
  write_tensors(path, make_metadata(spec), make_tensors(spec));
}

TraceSpec random_spec(const RandomShape& shape) {
  TraceSpec spec;
  spec.dtype = shape.dtype;
  spec.meta.tokens = shape.tokens;
  spec.meta.prompt_tokens = shape.prompt_tokens;
  spec.meta.query_heads = shape.query_heads;
  spec.meta.kv_heads = shape.kv_heads;
  spec.meta.head_dim = shape.head_dim;
  spec.meta.v_head_dim = shape.v_head_dim;
  // Box and Muller by hand: std::normal_distribution differs between standard libraries.
  std::mt19937_64 engine(shape.seed);
  const auto normal = [&engine] {
    const double u = (static_cast<double>(engine() >> 11U) + 1) / 9007199254740993.0;
    const double angle = static_cast<double>(engine() >> 11U) / 9007199254740992.0;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * angle);
  };
  const auto numbers = [&normal, &shape](int heads, int dim) {
    std::vector<double> values(static_cast<std::size_t>(shape.tokens * heads * dim));
    for (double& value : values) value = normal();
    return values;
  };
  for (int l = 0; l < shape.layers; ++l) {
    LayerSpec layer;
    layer.q = numbers(shape.query_heads, shape.head_dim);
    layer.k = numbers(shape.kv_heads, shape.head_dim);
    layer.v = numbers(shape.kv_heads, shape.v_head_dim == 0 ? shape.head_dim : shape.v_head_dim);
    spec.layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace kvspan::test
