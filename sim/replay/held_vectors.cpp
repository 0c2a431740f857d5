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

HeldVectors::HeldVectors(const Trace& trace, const LayerShape& shape, bool renumbers,
                         const Residency& residency)
    : trace_(trace), shape_(shape), renumbers_(renumbers), residency_(residency) {}

void HeldVectors::rewrite(const std::vector<Rewrite>& rewrites, const LayerScores& scores) {
  const TraceMeta& m = trace_.meta();
  if (panels_.empty()) {
    heads_.assign(static_cast<std::size_t>(m.kv_heads), 0);
    const std::span<const float> panels = scores.key_panels();
    panels_.assign(panels.begin(), panels.end());
    const float* values = scores.values(0);
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
              values_.begin() + (r.kv_head * m.tokens + r.token) * m.v_head_dim);
  }
}

void HeldVectors::add(RowIndex begin, RowIndex end, const LayerScores& scores) {
  if (panels_.empty()) return;
  const TraceMeta& m = trace_.meta();
  const std::int64_t head_stride = padded(m.tokens) * m.head_dim;
  const float* panels = scores.key_panels().data();
  for (int h = 0; h < m.kv_heads; ++h) {
    for (RowIndex t = begin; t < end; ++t) {
      const std::int64_t at = h * head_stride + t / kPanel * kPanel * m.head_dim + t % kPanel;
      for (std::int64_t d = 0; d < m.head_dim; ++d)
        panels_[index(at + d * kPanel)] = panels[at + d * kPanel];
    }
    std::copy_n(scores.values(h) + begin * m.v_head_dim, (end - begin) * m.v_head_dim,
                values_.begin() + (h * m.tokens + begin) * m.v_head_dim);
  }
}

bool HeldVectors::differ(int head) const {
  const int kv_head = shape_.kv_head(head);
  return absorbed_ || (renumbers_ && !residency_.whole(head)) ||
         (!heads_.empty() && heads_[static_cast<std::size_t>(kv_head)] != 0);
}

std::vector<HeldVectors::Error> HeldVectors::errors(const Rows& rows, const LayerScores& scores,
                                                    Store* store) const {
  const std::vector<Query>& queries = rows.queries;
  RowIndex last = 0;
  for (const Query& query : queries) last = std::max(last, query.row);
  const Floats q = vectors(queries);
  Floats terms(q.size(), std::vector<float>(index(padded(last + 1)), 0.0F));
  std::vector<Error> out(q.size());
  std::vector<Held> held;
  const bool as_logged = panels_.empty() && !renumbers_;
  if (!as_logged) logits(rows, q, terms);
  for (std::size_t i = 0; i < q.size(); ++i) {
    const Query& query = queries[i];
    const RowIndex first = scores.first_key(query.row);
    const auto begin = std::lower_bound(rows.entries.begin(), rows.entries.end(), first);
    const std::span<const TokenIndex> read(begin,
                                           std::upper_bound(begin, rows.entries.end(), query.row));
    if (as_logged) {
      // Only the state of victims differs: the row's own terms, relative to its own maximum.
      double sum = 0;
      for (const TokenIndex t : read) {
        terms[i][index(t)] = query.full->terms[t];
        sum += static_cast<double>(query.full->terms[t]);
      }
      held.push_back({query.full->max, sum});
      continue;
    }
    // Nothing is read outside.
    std::fill_n(terms[i].begin(), first, 0.0F);
    std::fill(terms[i].begin() + query.row + 1, terms[i].end(), 0.0F);
    const kernels::HeldTerms now = kernels::held_terms(
        read.data(), std::ssize(read), query.full->terms, query.full->max, terms[i].data());
    if (now.weight > 0) out[i].logits = now.distance / now.weight;
    held.push_back({static_cast<double>(now.max), now.sum});
  }
  std::vector<std::vector<double>> output = outputs(rows, terms, scores);
  for (std::size_t i = 0; i < q.size(); ++i)
    out[i].output = output_error(queries[i], q[i], held[i], store, output[i]);
  return out;
}

HeldVectors::Floats HeldVectors::vectors(const std::vector<Query>& queries) const {
  const TraceMeta& m = trace_.meta();
  Floats out;
  for (const Query& query : queries) {
    out.emplace_back(index(m.head_dim));
    widen(*trace_.q(shape_.layer), (query.row * m.query_heads + query.head) * m.head_dim,
          out.back(), "q");
  }
  return out;
}

namespace {

// Logits of the panels that hold the keys [first, last].
void take_logits(const TraceMeta& m, const float* panels, const std::vector<std::vector<float>>& q,
                 TokenIndex first, TokenIndex last, std::vector<std::vector<float>>& out) {
  std::vector<const float*> from;
  std::vector<float*> to;
  for (std::size_t i = 0; i < q.size(); ++i) {
    from.push_back(q[i].data());
    to.push_back(out[i].data());
  }
  kernels::logits(from.data(), std::ssize(from), m.head_dim, panels, first / kPanel,
                  last / kPanel + 1, static_cast<float>(m.score_scale),
                  static_cast<float>(m.logit_softcap), to.data());
}

}  // namespace

void HeldVectors::logits(const Rows& rows, const Floats& q, Floats& out) const {
  const TraceMeta& m = trace_.meta();
  const int kv_head = shape_.kv_head(rows.queries.front().head / shape_.group());
  const float* panels = panels_.data() + kv_head * padded(m.tokens) * m.head_dim;
  if (rows.entries.empty()) return;
  if (renumbers_) {
    moved_logits(rows, q, panels, out);
  } else {
    take_logits(m, panels, q, rows.entries.front(), rows.entries.back(), out);
  }
}

void HeldVectors::moved_logits(const Rows& rows, const Floats& q, const float* panels,
                               Floats& out) const {
  const TraceMeta& m = trace_.meta();
  const auto residents = residency_.entries(rows.queries.front().head / shape_.group());
  const auto shift_of = [&](std::int64_t token) -> std::int64_t {  // places that it has moved up
    return token -
           (std::lower_bound(residents.begin(), residents.end(), token) - residents.begin());
  };
  Floats z = out;
  // Runs of entries that moved by the same number of places share one rotated query.
  for (std::size_t i = 0; i < rows.entries.size();) {
    const std::int64_t shift = shift_of(rows.entries[i]);
    const std::size_t first = i;
    while (i < rows.entries.size() && shift_of(rows.entries[i]) == shift) ++i;
    Floats turned = q;
    for (std::size_t r = 0; r < q.size(); ++r) {
      const std::int64_t own = shift_of(rows.queries[r].row);
      if (own != shift) rotate(*m.rope, static_cast<double>(shift - own), turned[r]);
    }
    take_logits(m, panels, turned, rows.entries[first], rows.entries[i - 1], z);
    for (std::size_t r = 0; r < z.size(); ++r) {
      for (std::size_t j = first; j < i; ++j)
        out[r][index(rows.entries[j])] = z[r][index(rows.entries[j])];
    }
  }
}

std::vector<std::vector<double>> HeldVectors::outputs(const Rows& rows, const Floats& terms,
                                                      const LayerScores& scores) const {
  const int kv_head = shape_.kv_head(rows.queries.front().head / shape_.group());
  const float* values = values_.empty()
                            ? scores.values(kv_head)
                            : values_.data() + kv_head * trace_.meta().tokens * shape_.v_dim;
  std::vector<std::vector<double>> out(terms.size(), std::vector<double>(index(shape_.v_dim), 0.0));
  std::vector<const float*> from;
  std::vector<double*> to;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    from.push_back(terms[i].data());
    to.push_back(out[i].data());
  }
  kernels::weighted_values(from.data(), std::ssize(from), rows.entries.data(),
                           std::ssize(rows.entries), values, shape_.v_dim, shape_.v_dim, to.data());
  return out;
}

double HeldVectors::output_error(const Query& query, std::span<const float> q, const Held& held,
                                 Store* store, std::span<double> output) const {
  const RowTerms& full = *query.full;
  double sum = held.sum + (full.sink > 0 ? full.sink * std::exp(full.max - held.max) : 0.0);
  if (absorbed_) store->add_output(query.head, q, held.max, output, sum);
  if (query.output != nullptr) normalise(output, sum, query.output);
  return relative_error({query.full_output, output.size()}, full.sum + full.sink, output, sum);
}

}  // namespace kvspan
