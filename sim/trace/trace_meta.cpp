// SPDX-License-Identifier: Apache-2.0
// The metadata of a trace: strings of unknown origin, until they are parsed and in range.
#include "sim/trace/trace_meta.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/trace/file_checks.h"

namespace kvspan {

using nlohmann::json;

namespace {

// Far above any model; chosen so that tokens x heads x head_dim x 8 bytes fits in 64 bits.
constexpr std::int64_t kMaxLayers = 1 << 16;
constexpr std::int64_t kMaxHeads = 1 << 12;
constexpr std::int64_t kMaxHeadDim = 1 << 13;
constexpr const char* kRopeTypes = "default, linear, llama3, yarn or factors";
constexpr std::string_view kFormat = "kvspan.trace";
constexpr std::int64_t kVersion = 1;

// A number of the rope_scaling object. `fallback` absent: required. Null counts as absent.
double scaling_number(const MetaReader& meta, const json& scaling, const std::string& type,
                      const char* name, std::optional<double> fallback) {
  const auto found = scaling.find(name);
  if (found == scaling.end() || found->is_null()) {
    if (fallback) return *fallback;
    meta.fail("rope_scaling", fmt::format("has no '{}'", name), "one for type '" + type + "'");
  }
  const double value = found->is_number() ? found->get<double>() : 0.0;
  if (!(value > 0)) {
    meta.fail("rope_scaling", fmt::format("has '{}' = {}", name, json_text(*found)),
              "a number > 0");
  }
  return value;
}

// Inverse frequencies of the "yarn" type: dimensions that turn often keep their frequency, those
// that turn rarely have it divided by `factor`, with a linear ramp between. Its attention factor
// scales q and k alike: the traced values hold it, and it survives undoing and redoing a rotation.
// Source: Peng et al. 2023 (YaRN), sec. 3.2, as in Hugging Face transformers, modeling_rope_utils.
void apply_yarn(const MetaReader& meta, const json& scaling, Rope* rope) {
  const double factor = scaling_number(meta, scaling, "yarn", "factor", {});
  const double context =
      scaling_number(meta, scaling, "yarn", "original_max_position_embeddings", {});
  const double beta_fast = scaling_number(meta, scaling, "yarn", "beta_fast", 32.0);
  const double beta_slow = scaling_number(meta, scaling, "yarn", "beta_slow", 1.0);
  const auto truncate = scaling.find("truncate");
  if (truncate != scaling.end() && !truncate->is_boolean()) {
    meta.fail("rope_scaling", "has 'truncate' = " + json_text(*truncate), "true or false");
  }
  const auto dimension_of = [&](double rotations) {
    return rope->dim * std::log(context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope->theta));
  };
  double low = dimension_of(beta_fast);
  double high = dimension_of(beta_slow);
  if (truncate == scaling.end() || truncate->get<bool>()) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rope->dim - 1.0);
  if (low == high) high += 0.001;  // as in the source: prevents a division by zero
  for (std::size_t i = 0; i < rope->inverse_frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    double& frequency = rope->inverse_frequencies[i];
    frequency = frequency / factor * ramp + frequency * (1 - ramp);
  }
}

// Inverse frequencies of the "llama3" type: by wavelength instead of by dimension.
// Source: Llama 3.1 reference code, as in Hugging Face transformers, modeling_rope_utils.
void apply_llama3(const MetaReader& meta, const json& scaling, Rope* rope) {
  const double factor = scaling_number(meta, scaling, "llama3", "factor", {});
  const double low = scaling_number(meta, scaling, "llama3", "low_freq_factor", {});
  const double high = scaling_number(meta, scaling, "llama3", "high_freq_factor", {});
  const double context =
      scaling_number(meta, scaling, "llama3", "original_max_position_embeddings", {});
  if (high <= low) {
    meta.fail("rope_scaling",
              fmt::format("has high_freq_factor {} and low_freq_factor {}", high, low),
              "high_freq_factor > low_freq_factor");
  }
  for (double& frequency : rope->inverse_frequencies) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      frequency /= factor;
    } else {
      const double smooth = (context / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

// Inverse frequencies of our own type "factors": each divided by its factor. GGUF files give the
// outcome of llama3 scaling in this form, without the parameters that it came from.
void apply_factors(const MetaReader& meta, const json& scaling, Rope* rope) {
  const json factors = scaling.value("factors", json());
  if (!factors.is_array() || factors.size() != rope->inverse_frequencies.size()) {
    meta.fail("rope_scaling", "has 'factors' = " + json_text(factors),
              fmt::format("a list of {} numbers > 0", rope->inverse_frequencies.size()));
  }
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const double factor = factors[i].is_number() ? factors[i].get<double>() : 0.0;
    if (!(factor > 0)) {
      meta.fail("rope_scaling", "has 'factors' that hold " + json_text(factors[i]), "numbers > 0");
    }
    rope->inverse_frequencies[i] /= factor;
  }
}

std::optional<Rope> parse_rope(const MetaReader& meta, int head_dim) {
  if (meta.find("rope_theta") == nullptr) {
    for (const char* key : {"rope_dim", "rope_layout", "rope_scaling"}) {
      if (meta.find(key) != nullptr) {
        meta.fail("rope_theta", "is missing", fmt::format("a number > 1 beside '{}'", key));
      }
    }
    return std::nullopt;
  }
  Rope rope;
  rope.theta = meta.real("rope_theta", 1.0, false);
  rope.dim = meta.small_integer("rope_dim", 2, head_dim);
  if (rope.dim % 2 != 0) meta.fail("rope_dim", fmt::format("is {}", rope.dim), "an even number");
  const std::string& layout = meta.require("rope_layout", "'half' or 'interleaved'");
  if (layout != "half" && layout != "interleaved") {
    meta.fail("rope_layout", "is " + in_quotes(layout), "'half' or 'interleaved'");
  }
  rope.interleaved = layout == "interleaved";
  for (int i = 0; i < rope.dim; i += 2) {
    rope.inverse_frequencies.push_back(std::pow(rope.theta, -static_cast<double>(i) / rope.dim));
  }
  if (meta.find("rope_scaling") == nullptr) return rope;

  const std::string expected = "the rope_scaling object of a Hugging Face config";
  const json scaling = meta.parse("rope_scaling", expected);
  if (scaling.is_null()) return rope;
  if (!scaling.is_object()) meta.fail("rope_scaling", "is " + json_text(scaling), expected);
  const auto type_entry =
      scaling.contains("rope_type") ? scaling.find("rope_type") : scaling.find("type");
  if (type_entry == scaling.end() || !type_entry->is_string()) {
    meta.fail("rope_scaling", "has no 'rope_type'", kRopeTypes);
  }
  const auto& type = type_entry->get_ref<const std::string&>();
  if (type == "linear") {
    const double factor = scaling_number(meta, scaling, type, "factor", {});
    for (double& frequency : rope.inverse_frequencies) frequency /= factor;
  } else if (type == "llama3") {
    apply_llama3(meta, scaling, &rope);
  } else if (type == "yarn") {
    apply_yarn(meta, scaling, &rope);
  } else if (type == "factors") {
    apply_factors(meta, scaling, &rope);
  } else if (type != "default") {
    meta.fail("rope_scaling", "has type " + in_quotes(type), kRopeTypes);
  }
  for (const double frequency : rope.inverse_frequencies) {
    if (!std::isfinite(frequency) || frequency < 0) {
      meta.fail("rope_scaling", fmt::format("gives an inverse frequency of {}", frequency),
                "finite ones >= 0");
    }
  }
  return rope;
}

void parse_layer_ids(const MetaReader& meta, TraceMeta* out) {
  out->model_layers = meta.find("model_layers") == nullptr
                          ? out->layers
                          : meta.small_integer("model_layers", out->layers, kMaxLayers);
  if (meta.find("layer_ids") == nullptr) {
    if (out->model_layers != out->layers) {
      meta.fail("layer_ids", "is missing",
                fmt::format("a list, because {} of {} layers are stored", out->layers,
                            out->model_layers));
    }
    for (int l = 0; l < out->layers; ++l) out->layer_ids.push_back(l);
    return;
  }
  for (const std::int64_t id : meta.integers("layer_ids", 0, out->model_layers - 1)) {
    if (!out->layer_ids.empty() && id <= out->layer_ids.back()) {
      meta.fail("layer_ids", fmt::format("holds {} after {}", id, out->layer_ids.back()),
                "an ascending list without repeats");
    }
    out->layer_ids.push_back(static_cast<int>(id));
  }
  if (out->layer_ids.size() != static_cast<std::size_t>(out->layers)) {
    meta.fail("layer_ids", fmt::format("lists {} layers", out->layer_ids.size()),
              fmt::format("{}, one for each stored layer", out->layers));
  }
}

// One integer for all layers, or a list with one for each; empty: the key is absent.
std::vector<std::int64_t> layer_integers(const MetaReader& meta, const char* key, int layers) {
  const auto count = static_cast<std::size_t>(layers);
  if (meta.find(key) == nullptr) return {};
  const json value = meta.parse(key, "an integer >= 0 or a JSON list of them");
  if (!value.is_array())
    return std::vector(count, meta.integers_of(key, json::array({value}), 0, kMaxTokens)[0]);
  std::vector<std::int64_t> out = meta.integers_of(key, value, 0, kMaxTokens);
  if (out.size() != count) {
    meta.fail(key, fmt::format("lists {} layers", out.size()),
              fmt::format("{}, one for each stored layer", count));
  }
  return out;
}

void parse_spans(const MetaReader& meta, TraceMeta* out) {
  if (meta.find("spans") == nullptr) return;
  const std::string expected = R"(a JSON list of {"name", "begin", "end"})";
  const json list = meta.parse("spans", expected);
  if (!list.is_array()) meta.fail("spans", "is " + json_text(list), expected);
  for (const json& item : list) {
    Span span;
    if (!item.is_object() || !item.contains("name") || !item["name"].is_string() ||
        !item.contains("begin") || !json_integer(item["begin"], &span.begin) ||
        !item.contains("end") || !json_integer(item["end"], &span.end)) {
      meta.fail("spans", "holds " + json_text(item), expected);
    }
    span.name = item["name"].get<std::string>();
    if (span.begin < 0 || span.begin >= span.end || span.end > out->tokens) {
      meta.fail("spans",
                fmt::format("has {} = [{}, {})", in_quotes(span.name), span.begin, span.end),
                fmt::format("0 <= begin < end <= {}, the number of tokens", out->tokens));
    }
    out->spans.push_back(std::move(span));
  }
}

void parse_passes(const MetaReader& meta, TraceMeta* out) {
  if (meta.find("passes") == nullptr) return;
  out->passes = meta.integers("passes", 1, out->prompt_tokens);
  for (std::size_t i = 1; i < out->passes.size(); ++i) {
    if (out->passes[i] <= out->passes[i - 1]) {
      meta.fail("passes", fmt::format("holds {} after {}", out->passes[i], out->passes[i - 1]),
                "ascending pass ends");
    }
  }
  if (out->passes.empty() || out->passes.back() != out->prompt_tokens) {
    meta.fail("passes",
              out->passes.empty() ? "is empty" : fmt::format("ends with {}", out->passes.back()),
              fmt::format("{}, the number of prompt tokens, as the last", out->prompt_tokens));
  }
}

}  // namespace

std::vector<std::int64_t> read_cache_elements(const Metadata& metadata, int layers,
                                              const std::string& file) {
  return layer_integers(MetaReader(metadata, file), "cache_elements", layers);
}

TraceMeta parse_trace_meta(const Metadata& metadata, std::size_t tensor_count,
                           const std::string& file) {
  const MetaReader meta(metadata, file);
  meta.check_format(kFormat, kVersion);
  TraceMeta out;
  out.layers = meta.small_integer("layers", 1, kMaxLayers);
  if (static_cast<std::size_t>(out.layers) > tensor_count) {
    meta.fail("layers", fmt::format("is {}", out.layers),
              fmt::format("no more than the {} tensors of the trace", tensor_count));
  }
  out.query_heads = meta.small_integer("query_heads", 1, kMaxHeads);
  out.kv_heads = meta.small_integer("kv_heads", 1, kMaxHeads);
  if (out.query_heads % out.kv_heads != 0) {
    meta.fail("query_heads", fmt::format("is {}", out.query_heads),
              fmt::format("a multiple of kv_heads, {}", out.kv_heads));
  }
  out.head_dim = meta.small_integer("head_dim", 1, kMaxHeadDim);
  out.v_head_dim = meta.find("v_head_dim") == nullptr
                       ? out.head_dim
                       : meta.small_integer("v_head_dim", 1, kMaxHeadDim);
  out.tokens = meta.integer("tokens", 1, kMaxTokens);
  out.prompt_tokens = meta.integer("prompt_tokens", 1, out.tokens);
  out.score_scale = meta.real("score_scale", 0.0, false);
  if (meta.find("logit_softcap") != nullptr) {
    out.logit_softcap = meta.real("logit_softcap", 0.0, true);
  }
  parse_layer_ids(meta, &out);
  out.sliding_window = layer_integers(meta, "sliding_window", out.layers);
  out.sliding_window.resize(static_cast<std::size_t>(out.layers));
  static_cast<void>(read_cache_elements(metadata, out.layers, file));
  parse_passes(meta, &out);
  parse_spans(meta, &out);
  if (meta.find("special_ids") != nullptr) {
    out.special_ids = meta.integers("special_ids", 0, kMaxTokens);
  }
  out.rope = parse_rope(meta, out.head_dim);
  out.model = meta.text("model");
  out.source = meta.text("source");
  out.text = meta.text("text");
  out.licence = meta.text("licence");
  out.created_by = meta.text("created_by");
  return out;
}

std::optional<Rope> read_rope(const Metadata& metadata, int head_dim, const std::string& file) {
  return parse_rope(MetaReader(metadata, file), head_dim);
}

}  // namespace kvspan
