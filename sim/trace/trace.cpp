// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/trace.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/half.h"
#include "sim/trace/file_checks.h"
#include "sim/trace/trace_meta.h"

namespace kvspan {

namespace {

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
  widen(*view, 0, values, one_line(name_) + ": tensor '" + tensor + "'");
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
    (*out)[i] = half_to_float(half);
    bad |= (half & 0x7C00U) + 0x0400U;  // reaches bit 15 for infinity and NaN only
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
