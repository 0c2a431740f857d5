// SPDX-License-Identifier: Apache-2.0
// MInference: sparse attention in the prompt; the cache stays whole. In front of a policy that
// evicts, its scores come from the masked rows. Per query head, in every pass of the prompt:
//   vertical_slash  softmax of the pass's last 64 queries over all keys; column sums choose
//                   `verticals` keys (the first 30 always), diagonal sums choose `slashes`
//                   distances (the nearest 100 always); row i reads the verticals and the keys i -
//                   distance
//   a_shape         row i reads the first `verticals` tokens and the newest `slashes`
// Source: Jiang et al., arXiv 2407.02490; code microsoft/MInference (minference_forward.py:
// vertical_and_slash_kernel, and (1000, 6096) where no pattern was fitted). Both counts are at most
// the tokens so far. In vertical_slash, verticals are at least `first`, slashes at least 50 (or
// forced_slash, if that is less); in a_shape a row always reads its own token.
// Left out: patterns fitted per head, and the block-sparse pattern (the released configurations are
// vertical_slash for every head). The kernels work in blocks of 64 x 64 and so read more; the
// estimate takes scaled logits without a soft cap, as theirs does.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

struct MinferenceSettings {
  bool vertical_slash = true;
  std::int64_t verticals = 1000;
  std::int64_t slashes = 6096;
  RowIndex last = 64;
  std::int64_t first = 30;
  std::int64_t forced_slash = 100;
};

class SparsePrompt final : public Selector {
 public:
  explicit SparsePrompt(const MinferenceSettings& settings) : settings_(settings) {}
  Needs needs() const override {
    if (settings_.vertical_slash) return {.q = true, .k = true};
    return {};
  }
  bool by_row() const override { return true; }

  void mask(const View& view, int query_head, RowIndex row, std::span<float> mask) override {
    if (view.pass().end != keys_) estimate(view);
    const std::size_t keys = index(keys_);
    const float* vertical = verticals_.data() + index(query_head) * keys;
    // slashes_ holds distances in descending order: key j of row i lies at keys - 1 - (i - j).
    const float* slash = slashes_.data() + index(query_head) * keys + (keys - 1 - index(row));
    for (std::size_t j = 0; j <= index(row); ++j) mask[j] *= std::max(vertical[j], slash[j]);
  }

 private:
  void estimate(const View& view) {
    const LayerShape& shape = view.shape();
    keys_ = view.pass().end;
    const std::size_t keys = index(keys_);
    const std::size_t heads = index(shape.query_heads);
    verticals_.assign(heads * keys, 0.0F);
    slashes_.assign(heads * keys, 0.0F);
    const bool chosen = settings_.vertical_slash;
    const std::int64_t fewest = chosen ? settings_.first : 0;
    const std::int64_t nearest = chosen ? std::min<std::int64_t>(50, settings_.forced_slash) : 1;
    const std::size_t v = index(std::min(keys_, std::max(settings_.verticals, fewest)));
    const std::size_t s = index(std::min(keys_, std::max(settings_.slashes, nearest)));
    if (!chosen) {
      for (std::size_t h = 0; h < heads; ++h) {
        std::fill_n(verticals_.begin() + static_cast<std::ptrdiff_t>(h * keys), v, 1.0F);
        std::fill_n(slashes_.begin() + static_cast<std::ptrdiff_t>((h + 1) * keys - s), s, 1.0F);
      }
      return;
    }
    const std::int64_t width = kernels::padded(keys_);
    std::vector<float> panels(index(width * shape.k_dim));
    std::vector<float> flat;
    for (int kv = 0; kv < shape.kv_heads; ++kv) {
      flat.clear();
      for (TokenIndex t = 0; t < keys_; ++t) {
        const std::vector<float> key = view.key(kv, t);
        flat.insert(flat.end(), key.begin(), key.end());
      }
      kernels::pack_keys(flat.data(), keys_, shape.k_dim, shape.k_dim, panels.data());
      const int group = shape.query_heads / shape.kv_heads;
      for (int q = kv * group; q < (kv + 1) * group; ++q) estimate_head(view, q, panels, v, s);
    }
  }

  void estimate_head(const View& view, int q, const std::vector<float>& panels, std::size_t v,
                     std::size_t s) {
    const std::size_t keys = index(keys_);
    const std::int64_t width = kernels::padded(keys_);
    std::vector<float> logits(index(width));
    std::vector<double> columns(keys, 0.0);
    std::vector<double> diagonals(keys, 0.0);  // by distance
    const RowIndex last = std::min(settings_.last, view.pass().rows());
    for (RowIndex row = keys_ - last; row < keys_; ++row) {
      const std::vector<float> query = view.query(q, row);
      const float* in = query.data();
      float* out = logits.data();
      kernels::logits(&in, 1, view.shape().k_dim, panels.data(), 0, width / kernels::kPanel,
                      static_cast<float>(view.score_scale()), 0.0F, &out);
      const kernels::Softmax softmax = kernels::softmax_terms(logits.data(), 0, row + 1, width);
      for (std::size_t j = 0; j <= index(row); ++j) {
        const double p = static_cast<double>(logits[j]) / softmax.sum;
        columns[j] += p;
        diagonals[index(row) - j] += p;
      }
    }
    const auto best = [&](const std::vector<double>& sums, std::int64_t forced, std::size_t count) {
      std::vector<float> rounded(sums.begin(), sums.end());
      std::fill_n(rounded.begin(), std::min(keys, index(forced)),
                  std::numeric_limits<float>::infinity());
      return best_of(rounded, count);
    };
    for (const std::int32_t j : best(columns, settings_.first, v))
      verticals_[index(q) * keys + index(j)] = 1.0F;
    for (const std::int32_t o : best(diagonals, settings_.forced_slash, s))
      slashes_[index(q) * keys + keys - 1 - index(o)] = 1.0F;
  }

  MinferenceSettings settings_;
  RowIndex keys_ = 0;                       // of the pass that the lists below are for
  std::vector<float> verticals_, slashes_;  // [query_heads][keys] 1: read
};

}  // namespace

PolicyEntry minference() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "minference";
  entry.kind = MethodKind::prefill_sparsity;
  entry.summary = "sparse attention in the prompt (vertical lines and diagonals); evicts nothing";
  entry.source = "Jiang et al. 2024, arXiv 2407.02490";
  entry.evidence = "code read";
  entry.differs =
      "released patterns are vertical-slash for every head; block-sparse is left out; the kernels "
      "round up to blocks of 64 x 64, here rows read what was chosen";
  entry.needs = "q and k; pattern=a_shape: nothing";
  entry.parameters = {
      {.name = "pattern",
       .kind = Kind::word,
       .fallback = "vertical_slash",
       .help = "chosen keys and distances, or first and newest tokens",
       .choices = {"vertical_slash", "a_shape"}},
      {.name = "verticals",
       .fallback = "1000",
       .unit = "tokens",
       .help = "keys that every row reads"},
      {.name = "slashes", .fallback = "6096", .help = "distances at which every row reads"},
      {.name = "last",
       .fallback = "64",
       .unit = "rows",
       .help = "queries that choose",
       .range = {1, 1e6}},
      {.name = "first",
       .fallback = "30",
       .unit = "tokens",
       .help = "first keys, always among the verticals"},
      {.name = "forced_slash",
       .fallback = "100",
       .help = "nearest distances, always among the slashes",
       .range = {.lowest = 1}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    MinferenceSettings s;
    s.vertical_slash = arguments.is("pattern", "vertical_slash");
    s.verticals = arguments.count("verticals");
    s.slashes = arguments.count("slashes");
    s.last = arguments.count("last");
    s.first = arguments.count("first");
    s.forced_slash = arguments.count("forced_slash");
    Recipe recipe;
    recipe.prefill_reads =
        own(SelectorFactory([s](const LayerShape&) { return std::make_unique<SparsePrompt>(s); }));
    recipe.knob = Knob{"verticals", 1, geometry.evict_point, true,
                       [](TokenCount tokens) { return std::to_string(tokens); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
