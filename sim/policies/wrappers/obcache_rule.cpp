// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/wrappers/obcache_rule.h"

#include <algorithm>
#include <numeric>

namespace kvspan::policies {
namespace {

// The view of another scorer, in which perturbations stand where probabilities stood.
class PerturbedView final : public View {
 public:
  PerturbedView(const View& view, const Perturbations& rows) : view_(view), rows_(rows) {}
  const LayerShape& shape() const override { return view_.shape(); }
  const Pass& pass() const override { return view_.pass(); }
  std::span<const TokenIndex> resident(int head) const override { return view_.resident(head); }
  std::span<const TokenIndex> cached(int head) const override { return view_.cached(head); }
  double votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
               std::span<double> out) const override {
    std::ranges::fill(out, 0.0);
    std::vector<double> one(out.size());
    const RowIndex end = pass().end;
    for (RowIndex row = end - std::min(rows, end); row < end; ++row) {
      rows_.of_row(view_, query_head, row, entries, one);
      for (std::size_t i = 0; i < one.size(); ++i) out[i] += one[i];
    }
    return 0;
  }
  double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                       std::span<double> out) const override {
    rows_.of_row(view_, query_head, row, entries, out);
    return 0;
  }
  void logits(int query_head, RowIndex row, std::span<const TokenIndex> entries,
              std::span<double> out) const override {
    view_.logits(query_head, row, entries, out);
  }
  double column_sum(int query_head, std::span<const TokenIndex> entries,
                    std::span<double> out) const override {
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = rows_.sum(query_head, entries[i]);
    return 0;
  }
  std::vector<float> query(int query_head, RowIndex row) const override {
    return view_.query(query_head, row);
  }
  std::vector<float> key(int kv_head, TokenIndex token) const override {
    return view_.key(kv_head, token);
  }
  std::vector<float> value(int kv_head, TokenIndex token) const override {
    return view_.value(kv_head, token);
  }
  double score_scale() const override { return view_.score_scale(); }
  const Rope* rope() const override { return view_.rope(); }
  bool measures_output() const override { return view_.measures_output(); }
  bool keeps_ranks() const override { return view_.keeps_ranks(); }
  const Decision* lower(int layer) const override { return view_.lower(layer); }
  std::span<const TokenCount> allotted() const override { return view_.allotted(); }

 private:
  const View& view_;
  const Perturbations& rows_;
};

}  // namespace

Perturbations::Perturbations(std::unique_ptr<Scorer> inner, Zeroed zeroed, const LayerShape& shape)
    : inner_(std::move(inner)),
      zeroed_(zeroed),
      values_(index(shape.kv_heads)),
      sums_(index(shape.query_heads)) {}

Needs Perturbations::needs() const {
  const Needs inner = inner_->needs();
  return {.last_rows = inner.last_rows,
          .observe = inner.column_sums ? Observe::always : Observe::never,
          .q = true,
          .k = true,
          .v = true};
}

void Perturbations::take_in(const View& view) {
  const LayerShape& shape = view.shape();
  for (int kv = 0; kv < shape.kv_heads; ++kv) {
    std::vector<float>& known = values_[index(kv)];
    const auto from = static_cast<TokenIndex>(known.size() / index(shape.v_dim));
    if (from >= view.pass().end) continue;
    std::vector<TokenIndex> born(index(view.pass().end - from));
    std::iota(born.begin(), born.end(), from);
    const std::vector<float> more = vectors_of(view, Vectors::values, kv, born);
    known.insert(known.end(), more.begin(), more.end());
  }
}

void Perturbations::observe(const View& view, RowIndex begin, RowIndex end) {
  take_in(view);
  std::vector<double> one;
  for (int q = 0; q < view.shape().query_heads; ++q) {
    std::vector<double>& sums = sums_[index(q)];
    sums.resize(index(end), 0.0);
    for (RowIndex row = begin; row < end; ++row) {
      const auto entries = resident_up_to(view, q / view.shape().group(), row);
      one.resize(entries.size());
      of_row(view, q, row, entries, one);
      for (std::size_t i = 0; i < one.size(); ++i) sums[index(entries[i])] += one[i];
    }
  }
}

double Perturbations::score(const View& view, int head, std::span<const TokenIndex> entries,
                            std::span<double> out) {
  take_in(view);
  return inner_->score(PerturbedView(view, *this), head, entries, out);
}

void Perturbations::of_row(const View& view, int query_head, RowIndex row,
                           std::span<const TokenIndex> entries, std::span<double> out) const {
  const LayerShape& shape = view.shape();
  const auto dim = index(shape.v_dim);
  const float* values = values_[index(shape.kv_head_of_query(query_head))].data();
  const auto value = [&](TokenIndex t) { return std::span(values + index(t) * dim, dim); };
  const auto all = resident_up_to(view, query_head / shape.group(), row);
  std::vector<double> p(all.size()), z(all.size());
  (void)view.probabilities(query_head, row, all, p);  // exact: q and k are there
  view.logits(query_head, row, all, z);
  std::vector<double> o(dim, 0.0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t d = 0; p[i] > 0 && d < dim; ++d)
      o[d] += p[i] * static_cast<double>(value(all[i])[d]);
  }
  std::size_t at = 0;  // place of the entry among all; both ascend
  for (std::size_t i = 0; i < entries.size(); ++i) {
    out[i] = 0;
    while (at < all.size() && all[at] < entries[i]) ++at;
    if (at == all.size() || all[at] != entries[i] || p[at] <= 0) continue;
    // Zeroing the value moves the output by -p v, zeroing the key by -p z (v - o), to first order.
    const double by_value = zeroed_ == Zeroed::key ? 0.0 : p[at];
    const double by_key = zeroed_ == Zeroed::value ? 0.0 : p[at] * z[at];
    for (std::size_t d = 0; d < dim; ++d) {
      const auto v = static_cast<double>(value(entries[i])[d]);
      const double moved = by_value * v + by_key * (v - o[d]);
      out[i] += moved * moved;
    }
  }
}

}  // namespace kvspan::policies
