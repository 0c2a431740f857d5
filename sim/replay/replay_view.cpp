// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/replay_view.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "sim/attention/kernels.h"

namespace kvspan {

using kernels::padded;

namespace {

std::string tensor_name(const Trace& trace, const LayerShape& shape, char tensor) {
  return fmt::format("{}: layers.{}.{}", trace.name(), shape.layer, tensor);
}

// Adds p' of one row to `out`; returns 1 / sum. mask null: the entries are read, all of them.
double add(const float* terms, const float* mask, double sum, RowIndex row,
           std::span<const TokenIndex> entries, std::span<double> out) {
  if (!(sum > 0)) return 0;
  const double inverse = 1.0 / sum;
  if (mask == nullptr) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (entries[i] <= row) out[i] += static_cast<double>(terms[entries[i]]) * inverse;
    }
    return inverse;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const TokenIndex t = entries[i];
    if (t <= row) out[i] += static_cast<double>(terms[t]) * static_cast<double>(mask[t]) * inverse;
  }
  return inverse;
}

std::vector<float> vector_of(const TensorView& tensor, std::int64_t index, int dim,
                             const std::string& name) {
  std::vector<float> out(static_cast<std::size_t>(dim));
  widen(tensor, index * dim, out, name);
  return out;
}

}  // namespace

LayerState::LayerState(const Policy& policy, const PassPlan& plan, const Trace& of,
                       const LayerShape& layer, const FidelityPlan& measured, Ledger& ledger,
                       const DecisionBoard& decided, SharedWork* of_layer)
    : trace(of),
      shape(layer),
      fidelity(measured),
      board(decided),
      shared(of_layer),
      keeps_ranks(!ledger.rank.empty()),
      q_name(tensor_name(of, layer, 'q')),
      k_name(tensor_name(of, layer, 'k')),
      v_name(tensor_name(of, layer, 'v')),
      pass(pass_at(plan, 0)),
      residency(layer.heads, plan.tokens),
      reads(policy, layer, residency, ledger),
      ranking(of_layer != nullptr && of_layer->scores.shares(shared_ranking(policy))
                  ? shared_ranking(policy)
                  : ""),
      plain(holds_plainly(policy)) {}

const float* mask_of(const LayerState& layer, int query_head, RowIndex row,
                     std::vector<float>& storage) {
  if (!layer.reads.by_row()) return layer.reads.mask(query_head);
  return layer.reads.row_mask(query_head, row, ReplayView(layer, nullptr), storage);
}

ReplayView::ReplayView(const LayerState& layer, const Rule* rule) : layer_(layer), rule_(rule) {
  if (rule_ == nullptr || rule_->domain == Domain::all) return;
  newborns_.assign(layer_.residency.mask(0).size(), 0.0F);
  std::fill(newborns_.begin() + pass().begin, newborns_.begin() + pass().end, 1.0F);
}

double ReplayView::votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
                         std::span<double> out) const {
  std::fill(out.begin(), out.end(), 0.0);
  const Pass& now = pass();
  if (rule_ != nullptr && rule_->probe_with_prompt_tail) {
    probe(query_head, rows, entries, out);
    return 0;
  }
  rows = std::min(rows, rule_ != nullptr && rule_->window_in_pass ? now.rows() : now.end);
  double slack = 0;
  RowIndex ahead = layer_.block->scores->is_qkv() ? now.end - rows : now.end;
  for (RowIndex row = now.end - rows; row < now.end; ++row) {
    if (row == ahead) ahead = look_ahead(*layer_.block, query_head, row, now.end, scratch_);
    slack += add_row(query_head, row, entries, out);
  }
  return slack;
}

double ReplayView::probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                                 std::span<double> out) const {
  std::fill(out.begin(), out.end(), 0.0);
  return add_row(query_head, row, entries, out);
}

double ReplayView::add_row(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                           std::span<double> out) const {
  const bool selected = newborns_.empty() && layer_.reads.selected();
  const float* mask =
      newborns_.empty() ? mask_of(layer_, query_head, row, mask_storage_) : newborns_.data();
  const AttendedRow a = attended(query_head, row, mask);
  return a.slack * add(a.terms, selected ? mask : nullptr, a.whole(), row, entries, out);
}

AttendedRow ReplayView::attended(int query_head, RowIndex row, const float* mask) const {
  if (!newborns_.empty()) return attend_row(*layer_.block, query_head, row, mask, scratch_);
  const RowBlock& block = *layer_.block;
  if (row >= pass().begin && block.has(row)) {
    const double known = layer_.readable[block.at(query_head, row)];
    const RowTerms& full = block.full(query_head, row);
    if (known > 0) return {full.terms, known, 0.0, 1.0, full.slack};
  }
  const bool all = layer_.reads.everything(query_head);
  return attend_row(block, query_head, row, all ? nullptr : mask, scratch_);
}

void ReplayView::probe(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
                       std::span<double> out) const {
  const Pass& now = pass();
  const bool newborn = !newborns_.empty();
  const float* mask =
      newborn ? newborns_.data() : mask_of(layer_, query_head, now.end - 1, mask_storage_);
  std::vector<float> terms(static_cast<std::size_t>(padded(layer_.block->tokens)));
  const LayerScores& scores = *layer_.block->scores;
  rows = std::min(rows, now.evict_point);
  for (RowIndex i = 0; i < rows; ++i) {
    const RowIndex position = now.end + i;
    const RowIndex first = std::max(newborn ? now.begin : 0, scores.first_key(position));
    if (first >= now.end) continue;
    const RowIndex row = now.evict_point - rows + i;
    const RowIndex own = std::max(now.evict_point - rows, scores.first_key(row));
    const RowTerms patch = scores.probe(query_head, row, row, own, row + 1, terms);
    const RowTerms t = scores.probe(query_head, row, position, first, now.end, terms);
    const double sum = kernels::masked_sum(t.terms, mask, padded(now.end)) + t.sink +
                       patch.sum * std::exp(patch.max - t.max);
    add(t.terms, nullptr, sum, now.end, entries, out);
  }
}

void ReplayView::logits(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                        std::span<double> out) const {
  // Formed anew: taken back from exp(z - max), logits of two rows or heads that are equal on paper
  // would differ.
  const LayerScores& scores = *layer_.block->scores;
  scratch_.row.resize(static_cast<std::size_t>(padded(layer_.block->tokens)));
  scores.logits(query_head, row, scratch_.row);
  const auto first = static_cast<TokenIndex>(scores.first_key(row));
  const float highest =
      *std::max_element(scratch_.row.begin() + first, scratch_.row.begin() + row + 1);
  const float* mask = mask_of(layer_, query_head, row, mask_storage_);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const TokenIndex t = entries[i];
    const bool readable = t >= first && t <= row && mask[t] != 0.0F;
    const float z = readable ? scratch_.row[static_cast<std::size_t>(t)] : 0.0F;
    out[i] = readable && z >= highest - 87.0F ? static_cast<double>(z)
                                              : -std::numeric_limits<double>::infinity();
  }
}

double ReplayView::column_sum(int query_head, std::span<const TokenIndex> entries,
                              std::span<double> out) const {
  const ColumnSums& columns = layer_.column_sums();
  const std::vector<double>& sums = columns.sums[static_cast<std::size_t>(query_head)];
  for (std::size_t i = 0; i < entries.size(); ++i)
    out[i] = sums[static_cast<std::size_t>(entries[i])];
  return columns.slack[static_cast<std::size_t>(query_head)];
}

const Decision* ReplayView::lower(int layer) const {
  const auto& decisions = layer_.board.decisions[static_cast<std::size_t>(layer)];
  const auto at = decisions.find(layer_.pass_index);
  return at == decisions.end() ? nullptr : &at->second;
}

std::span<const TokenCount> ReplayView::allotted() const {
  return layer_.board.shares[static_cast<std::size_t>(shape().layer)];
}

std::optional<SharedScores::Key> ReplayView::shared_key(int head,
                                                        std::span<const TokenIndex> entries) const {
  if (rule_ == nullptr || entries.empty() || layer_.ranking.empty() ||
      rule_->ranking != layer_.ranking || !layer_.residency.whole()) {
    return std::nullopt;
  }
  if (index(entries.back() - entries.front()) + 1 != entries.size()) return std::nullopt;
  return SharedScores::Key{rule_->ranking, pass().begin,    pass().end,    how_it_looks(*rule_),
                           head,           entries.front(), entries.size()};
}

const KnownScores* ReplayView::known(int head, std::span<const TokenIndex> entries) const {
  const auto key = shared_key(head, entries);
  return key ? layer_.shared->scores.find(*key) : nullptr;
}

void ReplayView::share(int head, std::span<const TokenIndex> entries,
                       std::span<const double> scores, double slack) const {
  if (const auto key = shared_key(head, entries)) layer_.shared->scores.add(*key, scores, slack);
}

std::shared_ptr<const void> ReplayView::known_state(RowIndex end) const {
  if (layer_.ranking.empty() || !layer_.residency.whole()) return nullptr;
  return layer_.shared->scores.state(layer_.ranking, end);
}

void ReplayView::share_state(RowIndex end, const std::shared_ptr<const void>& state) const {
  if (layer_.ranking.empty() || !layer_.residency.whole()) return;
  layer_.shared->scores.add_state(layer_.ranking, end, state);
}

std::vector<float> ReplayView::query(int query_head, RowIndex row) const {
  const TraceMeta& m = layer_.trace.meta();
  return vector_of(*layer_.trace.q(shape().layer), row * m.query_heads + query_head, m.head_dim,
                   layer_.q_name);
}

std::vector<float> ReplayView::key(int kv_head, TokenIndex token) const {
  const TraceMeta& m = layer_.trace.meta();
  return vector_of(*layer_.trace.k(shape().layer), std::int64_t{token} * m.kv_heads + kv_head,
                   m.head_dim, layer_.k_name);
}

std::vector<float> ReplayView::value(int kv_head, TokenIndex token) const {
  const TraceMeta& m = layer_.trace.meta();
  return vector_of(*layer_.trace.v(shape().layer), std::int64_t{token} * m.kv_heads + kv_head,
                   m.v_head_dim, layer_.v_name);
}

namespace {

// One vector of a head for each entry.  out [entries][dim]
void widen_all(const TensorView& tensor, int heads, int head, int dim,
               std::span<const TokenIndex> entries, std::span<float> out, const std::string& name) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    widen(tensor, (std::int64_t{entries[i]} * heads + head) * dim,
          out.subspan(i * index(dim), index(dim)), name);
  }
}

}  // namespace

void ReplayView::keys(int kv_head, std::span<const TokenIndex> entries,
                      std::span<float> out) const {
  const TraceMeta& m = layer_.trace.meta();
  widen_all(*layer_.trace.k(shape().layer), m.kv_heads, kv_head, m.head_dim, entries, out,
            layer_.k_name);
}

void ReplayView::values(int kv_head, std::span<const TokenIndex> entries,
                        std::span<float> out) const {
  const TraceMeta& m = layer_.trace.meta();
  widen_all(*layer_.trace.v(shape().layer), m.kv_heads, kv_head, m.v_head_dim, entries, out,
            layer_.v_name);
}

void ReplayView::key_rows(TokenIndex begin, [[maybe_unused]] TokenIndex end,
                          std::span<float> out) const {
  const TraceMeta& m = layer_.trace.meta();
  assert(std::ssize(out) == std::int64_t{end - begin} * m.kv_heads * m.head_dim);
  widen(*layer_.trace.k(shape().layer), std::int64_t{begin} * m.kv_heads * m.head_dim, out,
        layer_.k_name);
}

void ReplayView::value_rows(TokenIndex begin, [[maybe_unused]] TokenIndex end,
                            std::span<float> out) const {
  const TraceMeta& m = layer_.trace.meta();
  assert(std::ssize(out) == std::int64_t{end - begin} * m.kv_heads * m.v_head_dim);
  widen(*layer_.trace.v(shape().layer), std::int64_t{begin} * m.kv_heads * m.v_head_dim, out,
        layer_.v_name);
}

const Rope* ReplayView::rope() const {
  const auto& rope = layer_.trace.meta().rope;
  return rope ? &*rope : nullptr;
}

}  // namespace kvspan
