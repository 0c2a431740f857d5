// SPDX-License-Identifier: Apache-2.0
// LU-KV: budgets of heads from a curve that was computed once, for a model and a scorer: for every
// whole percent r of what leaves, the share that leaves each head. With n entries a head
//   a head keeps (1 - share) n, rounded down; what the rounding takes from a layer's heads goes to
//   the largest fractions; at least one
// r is the budget's, rounded to a percent (1 to 99; a half to the even one). The curve may give
// layers more or less than the budget. Combine it with the scorer that the curve is of: the first 4
// entries and the newest stay, beside those that this scorer protects.
// file: a tensor `curve` [99, layers, kv_heads] of any float type (the authors' curves are .npy).
// Source: arXiv 2602.08585; NVIDIA/kvpress LUKVPress (with ExpectedAttention, epsilon 0.02).
#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

constexpr int kPercents = 99;

struct Curve {
  int layers = 0, heads = 0;
  std::vector<float> leaves;   // [99][layers][heads]
  std::vector<int> layer_ids;  // [stored layers] the file's index
  [[nodiscard]] std::span<const float> of(int percent, int stored_layer) const {
    const int row = (percent - 1) * layers + layer_ids[index(stored_layer)];
    return std::span(leaves).subspan(index(row) * index(heads), index(heads));
  }
};

Curve read_curve(const std::string& file, const Geometry& geometry) {
  const TensorSet set = TensorSet::open(file);
  const TensorView* tensor = set.find("curve");
  const auto fits = [&](std::int64_t layers) {
    return tensor->shape ==
           std::vector<std::int64_t>{kPercents, layers, std::int64_t{geometry.kv_heads}};
  };
  const bool stored = tensor != nullptr && fits(geometry.layers());
  if (tensor == nullptr || (!stored && !fits(geometry.model_layers))) {
    throw TraceError(fmt::format("lukv: {}: {}, expected a tensor 'curve' [99, {} or {}, {}]", file,
                                 tensor == nullptr
                                     ? "has no such tensor"
                                     : fmt::format("curve is [{}]", fmt::join(tensor->shape, ", ")),
                                 geometry.layers(), geometry.model_layers, geometry.kv_heads));
  }
  Curve out{static_cast<int>(tensor->shape[1]), geometry.kv_heads, {}, geometry.layer_ids};
  if (stored) std::iota(out.layer_ids.begin(), out.layer_ids.end(), 0);
  out.leaves.resize(index(tensor->elements()));
  widen(*tensor, 0, out.leaves, file + ": curve");
  return out;
}

class FromCurve final : public Budget {
 public:
  explicit FromCurve(Curve curve) : curve_(std::move(curve)) {}

  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || sizing.tokens >= sizing.rows) return kAll;
    // One rounding: half a percent is half a percent.
    const double leaves =
        100 * static_cast<double>(sizing.rows - sizing.tokens) / static_cast<double>(sizing.rows);
    const int percent = std::clamp(static_cast<int>(std::llrint(leaves)), 1, kPercents);
    return of_heads(curve_.of(percent, shape.layer), sizing.rows)[index(shape.kv_head(head))];
  }

 private:
  // In fp32, as there.
  static std::vector<TokenCount> of_heads(std::span<const float> leaves, RowIndex rows) {
    std::vector<float> ideal;
    for (const float share : leaves)
      ideal.push_back(std::clamp(1 - share, 0.0F, 1.0F) * static_cast<float>(rows));
    const auto heads = std::ssize(ideal);
    const auto total = std::clamp<TokenCount>(
        std::llrint(std::accumulate(ideal.begin(), ideal.end(), 0.0F)), heads, heads * rows);
    std::vector<TokenCount> out;
    for (const float x : ideal) out.push_back(static_cast<TokenCount>(std::floor(x)));
    std::vector<std::size_t> order(ideal.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
      return ideal[a] - std::floor(ideal[a]) > ideal[b] - std::floor(ideal[b]);
    });
    const TokenCount rest = total - std::accumulate(out.begin(), out.end(), TokenCount{0});
    for (TokenCount i = 0; i < std::min<TokenCount>(rest, heads); ++i) ++out[order[index(i)]];
    for (TokenCount& count : out) count = std::clamp<TokenCount>(count, 1, rows);
    return out;
  }

  Curve curve_;
};

}  // namespace

PolicyEntry lukv() {
  PolicyEntry entry;
  entry.name = "lukv";
  entry.kind = MethodKind::budget_shape;
  entry.summary = "budgets of heads from a curve in a file, for another policy's scores";
  entry.source = "LU-KV 2026, arXiv 2602.08585; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress); the curve comes from a file";
  entry.differs =
      "kvpress masks keys and frees none of them; it takes the percent from its ratio, here from "
      "the budget in tokens; it also scores the first 4 entries and the newest, which stay: here a "
      "scorer sees those that may leave";
  entry.needs = "what the other policy needs";
  entry.alone =
      "it is a budget shape; combine it, as in lukv(file=CURVE)+expected_attention(budget=20%)";
  entry.needs_file = true;
  entry.parameters = {{.name = "file",
                       .kind = Parameter::Kind::text,
                       .unit = "file",
                       .help = "safetensors with `curve` [99, layers, kv_heads]: what leaves"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    recipe.shape = own(std::make_shared<FromCurve>(read_curve(arguments.text("file"), geometry)));
    recipe.protect = by_default(ProtectRule([](TokenCount) { return Protect{4, 1}; }));
    recipe.charge.once = 4LL * geometry.layers() * geometry.kv_heads;  // the length of every head
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
