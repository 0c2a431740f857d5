// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/held_vectors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/attention/kernels.h"
#include "sim/replay/fidelity.h"

namespace kvspan {

using kernels::kPanel;
using kernels::padded;

namespace {

// terms: logits at the entries, which become exp(z - highest). Returns the weighted mean distance
// of the logits from the full row's; nothing where that row has no weight on the entries.
std::optional<double> to_terms(std::span<const TokenIndex> entries, const RowTerms& full,
                               float highest, std::vector<float>& terms) {
  double error = 0;
  double weight = 0;
  for (const TokenIndex t : entries) {
    float& term = terms[static_cast<std::size_t>(t)];
    const auto exact = static_cast<double>(full.terms[t]);
    if (exact > 0) {
      error += exact * std::abs(full.max + std::log(exact) - static_cast<double>(term));
      weight += exact;
    }
    term = std::exp(term - highest);
  }
  return weight > 0 ? std::optional(error / weight) : std::nullopt;
}

}  // namespace

HeldVectors::HeldVectors(const Trace& trace, const LayerShape& shape, bool renumbers,
                         const Residency& residency)
    : trace_(trace), shape_(shape), renumbers_(renumbers), residency_(residency) {}

void HeldVectors::rewrite(const std::vector<Rewrite>& rewrites, const LayerScores& scores) {
  const TraceMeta& m = trace_.meta();
  if (panels_.empty()) {
    heads_.assign(static_cast<std::size_t>(m.kv_heads), 0);
    const std::span<const float> panels = scores.key_panels();
    panels_.assign(panels.begin(), panels.end());
    const float* values = scores.values();
    values_.assign(values, values + m.tokens * m.kv_heads * m.v_head_dim);
  }
  const std::int64_t head_stride = padded(m.tokens) * m.head_dim;
  for (const Rewrite& r : rewrites) {
    heads_[static_cast<std::size_t>(r.kv_head)] = 1;
    float* key = panels_.data() + r.kv_head * head_stride + r.token / kPanel * kPanel * m.head_dim +
                 r.token % kPanel;
    for (std::size_t d = 0; d < r.k.size(); ++d)
      key[static_cast<std::int64_t>(d) * kPanel] = r.k[d];
    std::copy(r.v.begin(), r.v.end(),
              values_.begin() + (std::int64_t{r.token} * m.kv_heads + r.kv_head) * m.v_head_dim);
  }
}

bool HeldVectors::differ(int head) const {
  const int kv_head = shape_.kv_head(head);
  return absorbed_ || (renumbers_ && !residency_.whole(head)) ||
         (!heads_.empty() && heads_[static_cast<std::size_t>(kv_head)] != 0);
}

HeldVectors::Error HeldVectors::error(const Row& row, const LayerScores& scores,
                                      Store* store) const {
  const std::vector<float> q = query(row);
  std::vector<float> terms(static_cast<std::size_t>(padded(row.row + 1)), 0.0F);
  if (panels_.empty() && !renumbers_) {
    // Only the state of victims differs: the row's own terms, relative to its own maximum.
    for (const TokenIndex t : row.entries) terms[static_cast<std::size_t>(t)] = row.full->terms[t];
    return {output_error(row, q, terms, row.full->max, scores, store), std::nullopt};
  }
  logits(row, q, terms);
  float highest = -std::numeric_limits<float>::infinity();
  for (const TokenIndex t : row.entries)
    highest = std::max(highest, terms[static_cast<std::size_t>(t)]);
  Error out;
  out.logits = to_terms(row.entries, *row.full, highest, terms);
  out.output = output_error(row, q, terms, static_cast<double>(highest), scores, store);
  return out;
}

std::vector<float> HeldVectors::query(const Row& row) const {
  const TraceMeta& m = trace_.meta();
  std::vector<float> q(static_cast<std::size_t>(m.head_dim));
  widen(*trace_.q(shape_.layer), (row.row * m.query_heads + row.query_head) * m.head_dim, q, "q");
  return q;
}

void HeldVectors::logits(const Row& row, const std::vector<float>& q,
                         std::vector<float>& out) const {
  const TraceMeta& m = trace_.meta();
  const int kv_head = row.query_head / (shape_.query_heads / shape_.kv_heads);
  const float* panels = panels_.data() + kv_head * padded(m.tokens) * m.head_dim;
  const auto residents = residency_.entries(row.query_head / shape_.group());
  const auto shift_of = [&](std::int64_t token) -> std::int64_t {  // places that it has moved up
    if (!renumbers_) return 0;
    return token -
           (std::lower_bound(residents.begin(), residents.end(), token) - residents.begin());
  };
  const std::int64_t own_shift = shift_of(row.row);
  std::vector<float> z(out.size());
  float* z_out = z.data();
  // Runs of entries that moved by the same number of places share one rotated query.
  for (std::size_t i = 0; i < row.entries.size();) {
    const std::int64_t shift = shift_of(row.entries[i]);
    std::size_t j = i + 1;
    while (j < row.entries.size() && shift_of(row.entries[j]) == shift) ++j;
    std::vector<float> turned = q;
    if (own_shift != shift) rotate(*m.rope, static_cast<double>(shift - own_shift), turned);
    const float* pointer = turned.data();
    kernels::logits(&pointer, 1, m.head_dim, panels, row.entries[i] / kPanel,
                    row.entries[j - 1] / kPanel + 1, static_cast<float>(m.score_scale),
                    static_cast<float>(m.logit_softcap), &z_out);
    for (; i < j; ++i)
      out[static_cast<std::size_t>(row.entries[i])] = z[static_cast<std::size_t>(row.entries[i])];
  }
}

// terms = exp(z - max) at the entries.
double HeldVectors::output_error(const Row& row, std::span<const float> q,
                                 const std::vector<float>& terms, double max,
                                 const LayerScores& scores, Store* store) const {
  const int kv_head = row.query_head / (shape_.query_heads / shape_.kv_heads);
  const float* values =
      (values_.empty() ? scores.values() : values_.data()) + kv_head * shape_.v_dim;
  std::vector<double> output(static_cast<std::size_t>(shape_.v_dim), 0.0);
  const float* row_terms = terms.data();
  double* out = output.data();
  kernels::weighted_values(&row_terms, 1, row.entries.data(),
                           static_cast<std::int64_t>(row.entries.size()), values,
                           std::int64_t{shape_.kv_heads} * shape_.v_dim, shape_.v_dim, &out);
  const RowTerms& full = *row.full;
  double sum = full.sink > 0 ? full.sink * std::exp(full.max - max) : 0.0;
  for (const TokenIndex t : row.entries)
    sum += static_cast<double>(terms[static_cast<std::size_t>(t)]);
  if (absorbed_) store->add_output(row.query_head, q, max, output, sum);
  return relative_error({row.full_output, output.size()}, full.sum + full.sink, output, sum);
}

}  // namespace kvspan
