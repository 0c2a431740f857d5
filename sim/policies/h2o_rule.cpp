// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/h2o_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

class ValueSums final : public Scorer {
 public:
  ValueSums(const LayerShape& shape, bool normalise)
      : normalise_(normalise), lengths_(index(shape.kv_heads)), sums_(index(shape.heads)) {}
  Needs needs() const override {
    return {.observe = Observe::always, .q = true, .k = true, .v = true};
  }

  void observe(const View& view, RowIndex begin, RowIndex end) override {
    const LayerShape& shape = view.shape();
    std::vector<TokenIndex> born(index(end - begin));
    std::iota(born.begin(), born.end(), static_cast<TokenIndex>(begin));
    std::vector<double> squares(born.size());
    for (int kv = 0; kv < shape.kv_heads; ++kv) {
      const std::vector<float> values = vectors_of(view, Vectors::values, kv, born);
      kernels::squared_norms(values.data(), std::ssize(born), shape.v_dim, shape.v_dim,
                             squares.data());
      for (const double square : squares) lengths_[index(kv)].push_back(std::sqrt(square));
    }
    for (int head = 0; head < shape.heads; ++head) {
      sums_[index(head)].resize(index(end), 0.0);
      for (RowIndex row = begin; row < end; ++row) add_row(view, head, row);
    }
  }

  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto rows = static_cast<double>(view.pass().end - entries[i]);
      out[i] = sums_[index(head)][index(entries[i])] / (normalise_ ? rows : 1);
    }
    round_sums(out);
    return 0;
  }

 private:
  void add_row(const View& view, int head, RowIndex row) {
    const LayerShape& shape = view.shape();
    const std::span<const TokenIndex> entries = resident_up_to(view, head, row);
    std::vector<double> p(entries.size()), share(entries.size(), 0.0);
    for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q) {
      (void)view.probabilities(q, row, entries, p);  // exact: q and k are there
      for (std::size_t i = 0; i < p.size(); ++i) share[i] += p[i];
    }
    double all = 0;
    for (std::size_t i = 0; i < share.size(); ++i)
      all += share[i] *= lengths_[index(shape.kv_head(head))][index(entries[i])];
    if (all <= 0) return;
    for (std::size_t i = 0; i < share.size(); ++i)
      sums_[index(head)][index(entries[i])] += share[i] / all;
  }

  bool normalise_;
  std::vector<std::vector<double>> lengths_;  // [KV heads][tokens so far]
  std::vector<std::vector<double>> sums_;     // [heads][tokens so far]
};

class AllButTheLeaver final : public Selector {
 public:
  AllButTheLeaver(TokenCount budget, TokenCount recent) : budget_(budget), recent_(recent) {}
  void select(const View& view, std::span<Reads> reads) override {
    const RowIndex row = view.pass().begin;
    if (!generates(view.pass()) || row <= budget_) return;
    const LayerShape& shape = view.shape();
    for (std::size_t q = 0; q < reads.size(); ++q) {
      const auto all = view.resident(static_cast<int>(q) / shape.group());
      reads[q].attended.emplace(all.begin(), all.end());
      std::erase(*reads[q].attended, static_cast<TokenIndex>(row - recent_));
    }
  }

 private:
  TokenCount budget_, recent_;
};

}  // namespace

Scoring value_sum_scoring(bool normalise) {
  Scoring scoring;
  scoring.make = [normalise](const LayerShape& shape) {
    return std::make_unique<ValueSums>(shape, normalise);
  };
  scoring.evicts_in_decode = true;
  return scoring;
}

SelectorFactory all_but_the_leaver(TokenCount budget, TokenCount recent) {
  return [budget, recent](const LayerShape&) {
    return std::make_unique<AllButTheLeaver>(budget, recent);
  };
}

}  // namespace kvspan::policies
