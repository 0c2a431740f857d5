// SPDX-License-Identifier: Apache-2.0
#include "sim/trace.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numbers>
#include <set>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/error.h"
#include "sim/trace_meta.h"

namespace kvspan {

using nlohmann::json;

namespace {

// Far above any model; chosen so that tokens x heads x head_dim x 8 bytes fits in 64 bits.
constexpr std::int64_t kMaxLayers = 1 << 16;
constexpr std::int64_t kMaxHeads = 1 << 12;
constexpr std::int64_t kMaxHeadDim = 1 << 13;
constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();  // keys are I32
constexpr int kMaxJsonDepth = 8;
constexpr std::size_t kMaxJsonBytes = std::size_t{16} << 20U;
constexpr const char* kRopeTypes = "default, linear, llama3, yarn or factors";
constexpr std::string_view kFormat = "kvspan.trace";
constexpr std::int64_t kVersion = 1;

bool json_integer(const json& value, std::int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return false;
  }
  *out = value.get<std::int64_t>();
  return true;
}

std::string json_text(const json& value) {
  return in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

// Typed access to the metadata; every error names the file and the key.
class MetaReader {
 public:
  MetaReader(const Metadata& metadata, const std::string& file)
      : metadata_(metadata), file_(file) {}

  [[noreturn]] void fail(std::string_view key, const std::string& found,
                         const std::string& expected) const {
    throw TraceError(
        fmt::format("{}: metadata key '{}' {}; expected {}", file_, key, found, expected));
  }
  [[nodiscard]] const std::string* find(const std::string& key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? nullptr : &found->second;
  }
  [[nodiscard]] const std::string& require(const std::string& key,
                                           const std::string& expected) const {
    const std::string* text = find(key);
    if (text == nullptr) fail(key, "is missing", expected);
    return *text;
  }
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t low,
                                     std::int64_t high) const {
    const std::string expected = fmt::format("an integer in [{}, {}]", low, high);
    const std::string& text = require(key, expected);
    std::int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end || value < low || value > high) {
      fail(key, "is " + in_quotes(text), expected);
    }
    return value;
  }
  [[nodiscard]] int small_integer(const std::string& key, std::int64_t low,
                                  std::int64_t high) const {
    return static_cast<int>(integer(key, low, high));
  }
  // A finite number; REQUIRES: low >= 0.
  [[nodiscard]] double real(const std::string& key, double low, bool low_is_allowed) const {
    const std::string expected = fmt::format("a number {} {}", low_is_allowed ? ">=" : ">", low);
    const std::string& text = require(key, expected);
    double value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end || !std::isfinite(value) || value < low ||
        (value == low && !low_is_allowed)) {
      fail(key, "is " + in_quotes(text), expected);
    }
    return value;
  }
  [[nodiscard]] json parse(const std::string& key, const std::string& expected) const {
    try {
      return parse_json_strict(require(key, expected));
    } catch (const std::invalid_argument& error) {
      fail(key, error.what(), expected);
    }
  }
  [[nodiscard]] std::string text(const std::string& key) const {
    const std::string* found = find(key);
    return found == nullptr ? std::string() : *found;
  }
  // A JSON list of integers in [low, high].
  [[nodiscard]] std::vector<std::int64_t> integers(const std::string& key, std::int64_t low,
                                                   std::int64_t high) const {
    return integers_of(key, parse(key, "a JSON list of integers"), low, high);
  }
  [[nodiscard]] std::vector<std::int64_t> integers_of(const std::string& key, const json& list,
                                                      std::int64_t low, std::int64_t high) const {
    if (!list.is_array()) fail(key, "is " + json_text(list), "a JSON list of integers");
    std::vector<std::int64_t> values;
    values.reserve(list.size());
    for (const json& item : list) {
      std::int64_t value = 0;
      if (!json_integer(item, &value) || value < low || value > high) {
        fail(key, "holds " + json_text(item), fmt::format("integers in [{}, {}]", low, high));
      }
      values.push_back(value);
    }
    return values;
  }

 private:
  const Metadata& metadata_;
  const std::string& file_;
};

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

void parse_sliding_window(const MetaReader& meta, TraceMeta* out) {
  const auto layers = static_cast<std::size_t>(out->layers);
  out->sliding_window.assign(layers, 0);
  if (meta.find("sliding_window") == nullptr) return;
  const json value = meta.parse("sliding_window", "an integer >= 0 or a JSON list of them");
  if (!value.is_array()) {
    const json list = json::array({value});
    out->sliding_window.assign(layers, meta.integers_of("sliding_window", list, 0, kMaxTokens)[0]);
    return;
  }
  out->sliding_window = meta.integers_of("sliding_window", value, 0, kMaxTokens);
  if (out->sliding_window.size() != layers) {
    meta.fail("sliding_window", fmt::format("lists {} layers", out->sliding_window.size()),
              fmt::format("{}, one for each stored layer", layers));
  }
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

// All metadata of a trace, validated.
//   tensor_count  tensors that the trace holds: more layers than that are refused before anything
//                 is allocated for them
TraceMeta parse_trace_meta(const Metadata& metadata, std::size_t tensor_count,
                           const std::string& file) {
  const MetaReader meta(metadata, file);
  const std::string& format = meta.require("format", fmt::format("'{}'", kFormat));
  if (format != kFormat) {
    meta.fail("format", "is " + in_quotes(format), fmt::format("'{}'", kFormat));
  }
  const std::int64_t version = meta.integer("version", 1, kMaxTokens);
  if (version != kVersion) {
    meta.fail("version", fmt::format("is {}, newer than this program reads", version),
              fmt::format("{}", kVersion));
  }
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
  parse_sliding_window(meta, &out);
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

using Dtypes = std::initializer_list<Dtype>;
constexpr std::int64_t kAnyExtent = -1;  // at least 1
constexpr std::int64_t kAnyOrNone = -2;  // at least 0

// Presence, dtype and shape of single tensors; every error names the file and the tensor.
class TensorChecker {
 public:
  TensorChecker(const TensorSet& set, const std::string& file) : set_(set), file_(file) {}

  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const {
    throw TraceError(file_ + ": tensor " + in_quotes(tensor) + ": " + what);
  }
  // Null when it is absent.
  [[nodiscard]] const TensorView* find(const std::string& name,
                                       const std::vector<std::int64_t>& shape,
                                       Dtypes dtypes) const {
    const TensorView* tensor = set_.find(name);
    if (tensor == nullptr) return nullptr;
    const bool same_shape = std::equal(
        tensor->shape.begin(), tensor->shape.end(), shape.begin(), shape.end(),
        [](std::int64_t found, std::int64_t wanted) {
          return wanted == kAnyExtent ? found >= 1 : wanted == kAnyOrNone || found == wanted;
        });
    if (!same_shape || std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
      fail(name, fmt::format("{} {}; expected {}", dtype_name(tensor->dtype),
                             shape_text(tensor->shape), expected(shape, dtypes)));
    }
    return tensor;
  }
  [[nodiscard]] const TensorView& require(const std::string& name,
                                          const std::vector<std::int64_t>& shape,
                                          Dtypes dtypes) const {
    const TensorView* tensor = find(name, shape, dtypes);
    if (tensor == nullptr) fail(name, "is missing; expected " + expected(shape, dtypes));
    return *tensor;
  }

 private:
  static std::string expected(const std::vector<std::int64_t>& shape, Dtypes dtypes) {
    std::string text;
    for (const Dtype dtype : dtypes) {
      if (!text.empty()) text += "|";
      text += dtype_name(dtype);
    }
    text += " [";
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (i > 0) text += ", ";
      text += shape[i] < 0 ? "any" : std::to_string(shape[i]);
    }
    return text + "]";
  }
  const TensorSet& set_;
  const std::string& file_;
};

std::string layer_tensor(int layer, std::string_view suffix) {
  return fmt::format("layers.{}.{}", layer, suffix);
}

constexpr Dtypes kFloat = {Dtype::f32, Dtype::f16, Dtype::bf16};
constexpr Dtypes kProbability = {Dtype::f16, Dtype::f32};

ScoreLayer check_score_layer(const TensorChecker& check, const TraceMeta& meta, int layer) {
  const auto name = [layer](std::string_view suffix) { return layer_tensor(layer, suffix); };
  const std::int64_t heads = meta.query_heads;
  ScoreLayer out;
  const TensorView& rows =
      check.require(name("scores.rows"), {kAnyExtent}, {Dtype::i32, Dtype::i64});
  const std::int64_t row_count = rows.shape[0];
  if (row_count > meta.tokens) {
    check.fail(
        name("scores.rows"),
        fmt::format("{} rows; expected at most {}, the number of tokens", row_count, meta.tokens));
  }
  out.dense = check.find(name("scores.dense"), {row_count, heads, meta.tokens}, kProbability);
  if (out.dense == nullptr) {
    out.prob = &check.require(name("scores.prob"), {row_count, heads, kAnyExtent}, kProbability);
    out.index = &check.require(name("scores.index"), out.prob->shape, {Dtype::i32});
  } else {
    for (const char* suffix : {"scores.prob", "scores.index"}) {
      if (check.find(name(suffix), {kAnyExtent, kAnyExtent, kAnyExtent},
                     {Dtype::f16, Dtype::f32, Dtype::i32}) != nullptr) {
        check.fail(name(suffix), "is present beside scores.dense; expected one of the two layouts");
      }
    }
  }
  out.lse = &check.require(name("scores.lse"), {row_count, heads}, {Dtype::f32});
  const auto passes = static_cast<std::int64_t>(meta.passes.size());
  if (passes > 0) {
    out.column_mass =
        check.find(name("scores.column_mass"), {passes, heads, meta.tokens}, {Dtype::f32});
  } else if (check.find(name("scores.column_mass"), {kAnyExtent, kAnyExtent, kAnyExtent},
                        {Dtype::f32}) != nullptr) {
    check.fail(name("scores.column_mass"), "needs the pass ends; expected metadata key 'passes'");
  }
  out.rows.reserve(static_cast<std::size_t>(row_count));
  for (std::int64_t i = 0; i < row_count; ++i) {
    const std::int64_t row = integer_at(rows, i);
    if (row < 0 || row >= meta.tokens || (i > 0 && row <= out.rows.back())) {
      check.fail(
          name("scores.rows"),
          fmt::format("element {} is {}; expected ascending rows in [0, {})", i, row, meta.tokens));
    }
    out.rows.push_back(row);
  }
  return out;
}

// Tensors of layers that the metadata does not count are a contradiction, not an extension.
void check_no_stray_layers(const TensorChecker& check, const TensorSet& set, int layers) {
  constexpr std::string_view kPrefix = "layers.";
  for (const auto& [name, tensor] : set.tensors()) {
    if (!name.starts_with(kPrefix)) continue;
    const char* end = name.data() + name.size();
    std::int64_t layer = 0;
    const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
    const bool is_number = stop != name.data() + kPrefix.size() && stop != end && *stop == '.';
    if (is_number && (error != std::errc{} || layer < 0 || layer >= layers)) {
      check.fail(
          name, fmt::format("no such layer; expected one below metadata key 'layers', {}", layers));
    }
  }
}

// Tensors that belong to the whole trace.
void check_token_tensors(const TensorChecker& check, const TraceMeta& meta) {
  static_cast<void>(check.find("token_ids", {meta.tokens}, {Dtype::i32}));
  static_cast<void>(check.find("nll", {meta.tokens}, {Dtype::f32}));
  const TensorView* offsets = check.find("token_text_offsets", {meta.tokens + 1}, {Dtype::i64});
  const TensorView* text = check.find("token_text", {kAnyOrNone}, {Dtype::u8});
  if (offsets == nullptr) {
    if (text != nullptr) check.fail("token_text_offsets", "is missing beside token_text");
    return;
  }
  if (text == nullptr) check.fail("token_text", "is missing beside token_text_offsets");
  const std::int64_t text_bytes = text->shape[0];
  std::int64_t previous = 0;
  for (std::int64_t i = 0; i <= meta.tokens; ++i) {
    const std::int64_t offset = integer_at(*offsets, i);
    const bool good = i == 0             ? offset == 0
                      : i == meta.tokens ? offset == text_bytes && offset >= previous
                                         : offset >= previous && offset <= text_bytes;
    if (!good) {
      check.fail("token_text_offsets",
                 fmt::format("element {} is {}; expected ascending offsets from 0 to {}", i, offset,
                             text_bytes));
    }
    previous = offset;
  }
}

}  // namespace

std::optional<Rope> read_rope(const Metadata& metadata, int head_dim, const std::string& file) {
  return parse_rope(MetaReader(metadata, file), head_dim);
}

json parse_json_strict(std::string_view text) {
  if (text.size() > kMaxJsonBytes) {
    throw std::invalid_argument(
        fmt::format("is {} bytes long, more than {}", text.size(), kMaxJsonBytes));
  }
  std::vector<std::set<std::string>> keys;
  const auto watch = [&keys](int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxJsonDepth) {
      throw std::invalid_argument(fmt::format("is nested deeper than {}", kMaxJsonDepth));
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw std::invalid_argument("repeats the key " + json_text(parsed));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& error) {
    throw std::invalid_argument(
        fmt::format("is {}, which is not valid JSON (byte {})", in_quotes(text), error.byte));
  } catch (const json::exception&) {  // a number that no double holds
    throw std::invalid_argument("is " + in_quotes(text) + ", which holds a number out of range");
  }
}

std::int64_t integer_at(const TensorView& tensor, std::int64_t index) {
  const auto read = [&](auto value) {
    const std::size_t offset = static_cast<std::size_t>(index) * sizeof(value);
    assert(offset + sizeof(value) <= tensor.bytes.size());
    std::memcpy(&value, tensor.bytes.data() + offset, sizeof(value));
    return static_cast<std::int64_t>(value);
  };
  assert(tensor.dtype == Dtype::i32 || tensor.dtype == Dtype::i64);
  return tensor.dtype == Dtype::i64 ? read(std::int64_t{}) : read(std::int32_t{});
}

Trace Trace::open(const std::filesystem::path& path) {
  return from_tensors(TensorSet::open(path), path.string());
}

Trace Trace::from_tensors(TensorSet tensors, const std::string& name) {
  Trace trace;
  trace.tensors_ = std::make_shared<const TensorSet>(std::move(tensors));
  trace.name_ = name;
  const TensorSet& set = *trace.tensors_;
  const std::string file = one_line(name);
  trace.meta_ = parse_trace_meta(set.metadata(), set.tensors().size(), file);
  const TraceMeta& meta = trace.meta_;
  const TensorChecker check(set, file);
  check_no_stray_layers(check, set, meta.layers);

  const auto has = [&set](int layer, std::string_view suffix) {
    return set.find(layer_tensor(layer, suffix)) != nullptr;
  };
  trace.qkv_ = has(0, "q") || has(0, "k") || !has(0, "scores.rows");
  trace.has_v_ = has(0, "v");
  const bool has_wo = has(0, "wo");
  std::int64_t hidden = kAnyExtent;
  for (int l = 0; l < meta.layers; ++l) {
    const auto tensor = [l](std::string_view suffix) { return layer_tensor(l, suffix); };
    const TensorView* q = nullptr;
    if (trace.qkv_) {
      q = &check.require(tensor("q"), {meta.tokens, meta.query_heads, meta.head_dim}, kFloat);
      static_cast<void>(
          check.require(tensor("k"), {meta.tokens, meta.kv_heads, meta.head_dim}, {q->dtype}));
      for (const char* suffix : {"scores.rows", "scores.prob", "scores.index", "scores.dense",
                                 "scores.lse", "scores.column_mass"}) {
        if (has(l, suffix)) {
          check.fail(tensor(suffix), "scores beside q and k; expected one of the two");
        }
      }
    } else {
      for (const char* suffix : {"q", "k"}) {
        if (has(l, suffix))
          check.fail(tensor(suffix), "q or k beside scores; expected one of the two");
      }
      trace.scores_.push_back(check_score_layer(check, meta, l));
    }
    for (const char* suffix : {"v", "wo"}) {
      const bool expected = suffix == std::string_view("v") ? trace.has_v_ : has_wo;
      if (has(l, suffix) != expected) {
        check.fail(tensor(suffix), expected ? "is missing; layer 0 has it, expected all or none"
                                            : "is present; layer 0 lacks it, expected all or none");
      }
    }
    const std::vector<std::int64_t> v_shape{meta.tokens, meta.kv_heads, meta.v_head_dim};
    static_cast<void>(q != nullptr ? check.find(tensor("v"), v_shape, {q->dtype})
                                   : check.find(tensor("v"), v_shape, kFloat));
    static_cast<void>(check.find(tensor("sink_logits"), {meta.query_heads}, kFloat));
    const std::int64_t width = std::int64_t{meta.query_heads} * meta.v_head_dim;
    if (const TensorView* wo = check.find(tensor("wo"), {hidden, width}, kFloat)) {
      hidden = wo->shape[0];
    }
  }
  check_token_tensors(check, meta);
  return trace;
}

bool Trace::has_wo() const { return tensors_->find(layer_tensor(0, "wo")) != nullptr; }

const TensorView* Trace::q(int layer) const { return tensors_->find(layer_tensor(layer, "q")); }
const TensorView* Trace::k(int layer) const { return tensors_->find(layer_tensor(layer, "k")); }
const TensorView* Trace::v(int layer) const { return tensors_->find(layer_tensor(layer, "v")); }

std::vector<float> Trace::sink_logits(int layer) const {
  const std::string tensor = layer_tensor(layer, "sink_logits");
  const TensorView* view = tensors_->find(tensor);
  if (view == nullptr) return {};
  std::vector<float> values(static_cast<std::size_t>(view->elements()));
  widen(*view, 0, values, one_line(name_) + ": tensor '" + tensor + "'");
  return values;
}

const ScoreLayer& Trace::scores(int layer) const {
  assert(!qkv_ && layer >= 0 && layer < meta_.layers);
  return scores_[static_cast<std::size_t>(layer)];
}

std::string_view Trace::token_text(std::int64_t token) const {
  const TensorView* offsets = tensors_->find("token_text_offsets");
  const TensorView* text = tensors_->find("token_text");
  if (offsets == nullptr || text == nullptr || token < 0 || token >= meta_.tokens) return {};
  const auto begin = static_cast<std::size_t>(integer_at(*offsets, token));
  const auto end = static_cast<std::size_t>(integer_at(*offsets, token + 1));
  return {reinterpret_cast<const char*>(text->bytes.data()) + begin, end - begin};
}

std::vector<std::int32_t> Trace::token_ids() const {
  const TensorView* view = tensors_->find("token_ids");
  if (view == nullptr) return {};
  std::vector<std::int32_t> ids(static_cast<std::size_t>(view->elements()));
  std::memcpy(ids.data(), view->bytes.data(), view->bytes.size());
  return ids;
}

std::string Trace::sha256() const {
  return tensors_->files().empty() ? std::string() : sha256_of_files(tensors_->files());
}

namespace {

constexpr std::size_t kWidenBlock = 1024;

// Converts one block and returns whether all of it is finite. The blocks are local arrays of fixed
// length and the bodies have no branch, so that compilers vectorise them at -O2 without being told
// about alignment or aliasing.
template <typename Storage>
using Convert = bool (*)(const std::array<Storage, kWidenBlock>&, std::array<float, kWidenBlock>*);

bool f16_block(const std::array<std::uint16_t, kWidenBlock>& in,
               std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    const std::uint32_t half = in[i];
    const std::uint32_t exponent = half & 0x7C00U;
    const std::uint32_t sign = (half & 0x8000U) << 16U;
    // Normal: move the fields and rebias the exponent from 15 to 127.
    const std::uint32_t normal = ((half & 0x7FFFU) << 13U) + (112U << 23U);
    // Subnormal: m * 2^-24 = 2^-14 (1 + m / 1024) - 2^-14, exact and free of slow subnormal floats.
    const float small = std::bit_cast<float>(((half & 0x03FFU) << 13U) | (113U << 23U)) - 0x1p-14F;
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(small);
    // Arithmetic, not a comparison: gcc 12 makes a branch of (exponent == 0 ? ~0U : 0U).
    const std::uint32_t is_subnormal = 0U - ((exponent - 1U) >> 31U);
    (*out)[i] = std::bit_cast<float>(sign | (subnormal & is_subnormal) | (normal & ~is_subnormal));
    bad |= exponent + 0x0400U;  // reaches bit 15 for infinity and NaN only
  }
  return (bad & 0x8000U) == 0;
}

bool bf16_block(const std::array<std::uint16_t, kWidenBlock>& in,
                std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    const std::uint32_t bits = in[i];
    (*out)[i] = std::bit_cast<float>(bits << 16U);
    bad |= (bits & 0x7F80U) == 0x7F80U ? 1U : 0U;
  }
  return bad == 0;
}

bool f32_block(const std::array<std::uint32_t, kWidenBlock>& in,
               std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    (*out)[i] = std::bit_cast<float>(in[i]);
    bad |= (in[i] & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
  }
  return bad == 0;
}

template <typename Storage>
void widen_with(Convert<Storage> convert, Storage exponent_mask, Storage mantissa_mask,
                const TensorView& tensor, std::int64_t first, std::span<float> out,
                const std::string& name) {
  alignas(64) std::array<Storage, kWidenBlock> in{};
  alignas(64) std::array<float, kWidenBlock> converted;
  const std::byte* source = tensor.bytes.data() + static_cast<std::size_t>(first) * sizeof(Storage);
  for (std::size_t done = 0; done < out.size(); done += kWidenBlock) {
    const std::size_t count = std::min(kWidenBlock, out.size() - done);
    std::memcpy(in.data(), source + done * sizeof(Storage), count * sizeof(Storage));
    if (count < kWidenBlock)
      std::fill(in.begin() + static_cast<std::ptrdiff_t>(count), in.end(), 0);
    if (!convert(in, &converted)) {
      for (std::size_t i = 0; i < count; ++i) {
        if ((in[i] & exponent_mask) != exponent_mask) continue;
        throw TraceError(fmt::format("{}: element {} is {}; expected finite values", name,
                                     first + static_cast<std::int64_t>(done + i),
                                     (in[i] & mantissa_mask) != 0 ? "NaN" : "infinite"));
      }
    }
    std::memcpy(out.data() + done, converted.data(), count * sizeof(float));
  }
}

}  // namespace

void widen(const TensorView& tensor, std::int64_t first, std::span<float> out,
           const std::string& name) {
  assert(first >= 0 && first + static_cast<std::int64_t>(out.size()) <= tensor.elements());
  using U16 = std::uint16_t;
  switch (tensor.dtype) {
    case Dtype::f32:
      widen_with<std::uint32_t>(f32_block, 0x7F800000U, 0x007FFFFFU, tensor, first, out, name);
      return;
    case Dtype::f16:
      widen_with<U16>(f16_block, U16{0x7C00}, U16{0x03FF}, tensor, first, out, name);
      return;
    case Dtype::bf16:
      widen_with<U16>(bf16_block, U16{0x7F80}, U16{0x007F}, tensor, first, out, name);
      return;
    case Dtype::i32:
    case Dtype::i64:
    case Dtype::u8:
    case Dtype::u32:
      break;
  }
  throw TraceError(fmt::format("{}: {}; expected a floating type", name, dtype_name(tensor.dtype)));
}

void rotate(const Rope& rope, double positions, std::span<float> vector) {
  const auto half = static_cast<std::size_t>(rope.dim / 2);
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t a = rope.interleaved ? 2 * i : i;
    const std::size_t b = rope.interleaved ? 2 * i + 1 : i + half;
    const double angle = positions * rope.inverse_frequencies[i];
    const double x = static_cast<double>(vector[a]);
    const double y = static_cast<double>(vector[b]);
    vector[a] = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
    vector[b] = static_cast<float>(y * std::cos(angle) + x * std::sin(angle));
  }
}

}  // namespace kvspan
