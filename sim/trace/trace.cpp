// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/trace.h"

#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "sim/base/file.h"
#include "sim/trace/file_checks.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_meta.h"

namespace kvspan {

std::string layer_tensor(int layer, std::string_view suffix) {
  return fmt::format("layers.{}.{}", layer, suffix);
}

namespace {

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

// Layers are alike: what layer 0 has, all have.
class LayerChecker {
 public:
  LayerChecker(const TensorChecker& check, const TensorSet& set, const TraceMeta& meta)
      : check_(check), set_(set), meta_(meta) {}

  [[nodiscard]] bool is_qkv() const { return has(0, "q") || has(0, "k") || !has(0, "scores.rows"); }
  [[nodiscard]] bool has_v() const { return has(0, "v"); }

  // Returns q, whose dtype k and v share.
  const TensorView& check_vectors(int layer) const {
    const auto name = [layer](std::string_view suffix) { return layer_tensor(layer, suffix); };
    const TensorView& q =
        check_.require(name("q"), {meta_.tokens, meta_.query_heads, meta_.head_dim}, kFloat);
    static_cast<void>(
        check_.require(name("k"), {meta_.tokens, meta_.kv_heads, meta_.head_dim}, {q.dtype}));
    for (const char* suffix : {"scores.rows", "scores.prob", "scores.index", "scores.dense",
                               "scores.lse", "scores.column_mass"}) {
      if (has(layer, suffix))
        check_.fail(name(suffix), "scores beside q and k; expected one of the two");
    }
    return q;
  }
  ScoreLayer check_scores(int layer) const {
    for (const char* suffix : {"q", "k"}) {
      if (!has(layer, suffix)) continue;
      check_.fail(layer_tensor(layer, suffix), "q or k beside scores; expected one of the two");
    }
    return check_score_layer(check_, meta_, layer);
  }
  // q: null for scores.
  void check_optional(int layer, const TensorView* q) {
    const auto name = [layer](std::string_view suffix) { return layer_tensor(layer, suffix); };
    for (const char* suffix : {"v", "wo"}) {
      const bool expected = has(0, suffix);
      if (has(layer, suffix) != expected) {
        check_.fail(name(suffix), expected ? "is missing; layer 0 has it, expected all or none"
                                           : "is present; layer 0 lacks it, expected all or none");
      }
    }
    const std::vector<std::int64_t> v_shape{meta_.tokens, meta_.kv_heads, meta_.v_head_dim};
    static_cast<void>(q != nullptr ? check_.find(name("v"), v_shape, {q->dtype})
                                   : check_.find(name("v"), v_shape, kFloat));
    static_cast<void>(check_.find(name("sink_logits"), {meta_.query_heads}, kFloat));
    const std::int64_t width = std::int64_t{meta_.query_heads} * meta_.v_head_dim;
    if (const TensorView* wo = check_.find(name("wo"), {hidden_, width}, kFloat)) {
      hidden_ = wo->shape[0];
    }
  }

 private:
  [[nodiscard]] bool has(int layer, std::string_view suffix) const {
    return set_.find(layer_tensor(layer, suffix)) != nullptr;
  }
  const TensorChecker& check_;
  const TensorSet& set_;
  const TraceMeta& meta_;
  std::int64_t hidden_ = kAnyExtent;  // rows of wo, the same in all layers
};

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

Trace Trace::open(const std::filesystem::path& path) {
  return from_tensors(TensorSet::open(path), path.string());
}

Trace Trace::from_tensors(TensorSet tensors, const std::string& name) {
  Trace trace;
  trace.tensors_ = std::make_shared<const TensorSet>(std::move(tensors));
  trace.name_ = name;
  const TensorSet& set = *trace.tensors_;
  const std::string file = path_text(name);
  trace.meta_ = parse_trace_meta(set.metadata(), set.tensors().size(), file);
  const TensorChecker check(set, file);
  check_no_stray_layers(check, set, trace.meta_.layers);
  LayerChecker layers(check, set, trace.meta_);
  trace.qkv_ = layers.is_qkv();
  trace.has_v_ = layers.has_v();
  for (int l = 0; l < trace.meta_.layers; ++l) {
    const TensorView* q = nullptr;
    if (trace.qkv_) {
      q = &layers.check_vectors(l);
    } else {
      trace.scores_.push_back(layers.check_scores(l));
    }
    layers.check_optional(l, q);
  }
  check_token_tensors(check, trace.meta_);
  check_probes(set, trace.meta_, trace.qkv_, file);
  trace.token_text_ = set.find("token_text");
  trace.token_text_offsets_ = set.find("token_text_offsets");
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
  widen(*view, 0, values, path_text(name_) + ": tensor '" + tensor + "'");
  return values;
}

const ScoreLayer& Trace::scores(int layer) const {
  assert(!qkv_ && layer >= 0 && layer < meta_.layers);
  return scores_[static_cast<std::size_t>(layer)];
}

std::string_view Trace::token_text(std::int64_t token) const {
  const bool any = token_text_offsets_ != nullptr && token_text_ != nullptr;
  if (!any || token < 0 || token >= meta_.tokens) return {};
  const auto begin = static_cast<std::size_t>(integer_at(*token_text_offsets_, token));
  const auto end = static_cast<std::size_t>(integer_at(*token_text_offsets_, token + 1));
  if (begin > end || end > token_text_->bytes.size()) return {};  // the file was changed meanwhile
  return {reinterpret_cast<const char*>(token_text_->bytes.data()) + begin, end - begin};
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
