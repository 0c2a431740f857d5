// SPDX-License-Identifier: Apache-2.0
#include "sim/lane.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include <fmt/format.h>

#include "sim/error.h"
#include "sim/kernels/kernels.h"

namespace kvspan {

using kernels::padded;

// Below this the readable keys lie some 57 nats under the row's maximum, and their fp32 terms lose
// digits: the row is redone with its maximum taken over the readable keys.
constexpr double kUnderflow = 1e-25;

// A layer at the end of a pass, through the domain of one rule.
class ReplayView final : public View {
 public:
  ReplayView(Lane& lane, const Rule* rule) : lane_(lane), rule_(rule) {
    if (rule_ == nullptr || rule_->domain == Domain::all) return;
    newborns_.assign(lane_.mask_[0].size(), 0.0F);
    std::fill(newborns_.begin() + lane_.pass_.begin, newborns_.begin() + lane_.pass_.end, 1.0F);
  }

  const LayerShape& shape() const override { return lane_.shape_; }
  const Pass& pass() const override { return lane_.pass_; }
  std::span<const TokenIndex> resident(int head) const override {
    return lane_.resident_[static_cast<std::size_t>(head)];
  }

  double votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
               std::span<double> out) const override {
    std::fill(out.begin(), out.end(), 0.0);
    const Pass& now = pass();
    if (rule_ != nullptr && rule_->probe_with_prompt_tail)
      return probe(query_head, rows, entries, out);
    rows = std::min(rows, rule_ != nullptr && rule_->window_in_pass ? now.rows() : now.end);
    double slack = 0;
    for (RowIndex row = now.end - rows; row < now.end; ++row) {
      Lane::Attended a;
      const double known = newborns_.empty() ? cached(query_head, row) : 0.0;
      if (known > 0) {
        const RowTerms& info = lane_.block_->info[lane_.block_->at(query_head, row)];
        a.terms = info.terms;
        a.slack = info.slack;
        a.sum = known;
      } else {
        const bool all = newborns_.empty() && lane_.reads_all(query_head);
        a = lane_.attend_row(query_head, row,
                             newborns_.empty() ? lane_.mask_of(query_head) : newborns_.data(), all,
                             scratch_);
        a.sum += a.sink;
      }
      slack += a.slack * add(a.terms, a.sum, row, entries, out);
    }
    return slack;
  }

  double column_sum(int query_head, std::span<const TokenIndex> entries,
                    std::span<double> out) const override {
    const std::vector<double>& sums = lane_.columns_[static_cast<std::size_t>(query_head)];
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = sums[static_cast<std::size_t>(entries[i])];
    return lane_.column_slack_[static_cast<std::size_t>(query_head)];
  }

  const Decision* lower(int layer) const override {
    const auto& decisions = lane_.board_[static_cast<std::size_t>(layer)];
    const auto at = decisions.find(lane_.pass_index_);
    return at == decisions.end() ? nullptr : &at->second;
  }

  std::vector<float> query(int query_head, RowIndex row) const override {
    const TraceMeta& m = lane_.trace_.meta();
    return vector(lane_.trace_.q(shape().layer), row * m.query_heads + query_head, m.head_dim, "q");
  }
  std::vector<float> key(int kv_head, TokenIndex token) const override {
    const TraceMeta& m = lane_.trace_.meta();
    return vector(lane_.trace_.k(shape().layer), std::int64_t{token} * m.kv_heads + kv_head,
                  m.head_dim, "k");
  }
  std::vector<float> value(int kv_head, TokenIndex token) const override {
    const TraceMeta& m = lane_.trace_.meta();
    return vector(lane_.trace_.v(shape().layer), std::int64_t{token} * m.kv_heads + kv_head,
                  m.v_head_dim, "v");
  }

 private:
  // Adds p' of one row to `out`; returns 1 / sum.
  static double add(const float* terms, double sum, RowIndex row,
                    std::span<const TokenIndex> entries, std::span<double> out) {
    if (!(sum > 0)) return 0;
    const double inverse = 1.0 / sum;
    for (std::size_t i = 0; i < entries.size() && entries[i] <= row; ++i) {
      out[i] += static_cast<double>(terms[entries[i]]) * inverse;
    }
    return inverse;
  }

  double cached(int query_head, RowIndex row) const {
    const RowBlock& block = *lane_.block_;
    return row >= pass().begin && row >= block.begin && block.has(row)
               ? lane_.readable_[block.at(query_head, row)]
               : 0.0;
  }

  double probe(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
               std::span<double> out) const {
    const Pass& now = pass();
    rows = std::min(rows, now.evict_at);
    const bool newborn = !newborns_.empty();
    const float* mask = newborn ? newborns_.data() : lane_.mask_of(query_head);
    std::vector<float> terms(static_cast<std::size_t>(padded(lane_.plan_.tokens)));
    const LayerScores& scores = *lane_.block_->scores;
    for (RowIndex i = 0; i < rows; ++i) {
      const RowIndex position = now.end + i;
      const RowIndex first = std::max(newborn ? now.begin : 0, scores.first_key(position));
      if (first >= now.end) continue;
      const RowTerms t =
          scores.probe(query_head, now.evict_at - rows + i, position, first, now.end, terms);
      add(t.terms, kernels::masked_sum(t.terms, mask, padded(now.end)) + t.sink, now.end, entries,
          out);
    }
    return 0;
  }

  std::vector<float> vector(const TensorView* tensor, std::int64_t index, int dim,
                            const char* name) const {
    std::vector<float> out(static_cast<std::size_t>(dim));
    widen(*tensor, index * dim, out,
          fmt::format("{}: layers.{}.{}", lane_.trace_.name(), shape().layer, name));
    return out;
  }

  Lane& lane_;
  const Rule* rule_;
  std::vector<float> newborns_;
  mutable Lane::Scratch scratch_;
};

Lane::Lane(const Policy& policy, const PassPlan& plan, const Trace& trace, const LayerShape& shape,
           const FidelityPlan& fidelity, Ledger& ledger, DecisionBoard& board)
    : policy_(policy),
      plan_(plan),
      trace_(trace),
      shape_(shape),
      fidelity_plan_(fidelity),
      ledger_(ledger),
      board_(board),
      driver_(policy, shape),
      needs_(driver_.needs()),
      fidelity_(fidelity, shape.query_heads),
      pass_(pass_at(plan, 0)) {
  const auto heads = static_cast<std::size_t>(shape.heads);
  const auto query_heads = static_cast<std::size_t>(shape.query_heads);
  const auto keys = static_cast<std::size_t>(padded(plan.tokens));
  resident_.resize(heads);
  for (auto& list : resident_) list.reserve(static_cast<std::size_t>(plan.tokens));
  mask_.assign(heads, std::vector<float>(keys, 0.0F));
  evicted_.assign(heads, 0);
  reads_.resize(query_heads);
  if (driver_.selector() != nullptr) {
    read_mask_.assign(query_heads, std::vector<float>(keys, 0.0F));
    selected_.assign(static_cast<std::size_t>(plan.tokens), 0);
  }
  if (needs_.column_sums) columns_.assign(query_heads, std::vector<double>(keys, 0.0));
  column_slack_.assign(query_heads, 0.0);
}

Lane::~Lane() = default;

const float* Lane::mask_of(int query_head) const {
  const auto q = static_cast<std::size_t>(query_head);
  return reads_[q] ? read_mask_[q].data()
                   : mask_[static_cast<std::size_t>(query_head / group())].data();
}

bool Lane::reads_all(int query_head) const {
  return evicted_[static_cast<std::size_t>(query_head / group())] == 0 &&
         !reads_[static_cast<std::size_t>(query_head)];
}

void Lane::process(const RowBlock& block) {
  block_ = &block;
  readable_.assign(block.info.size(), 0.0);
  for (RowIndex row = block.begin; row < block.end;) {
    if (row == pass_.begin) begin_pass();
    const RowIndex end = std::min(pass_.end, block.end);
    attend(row, end);
    row = end;
    if (row == pass_.end) end_pass();
  }
  block_ = nullptr;
}

void Lane::begin_pass() {
  for (int h = 0; h < shape_.heads; ++h) {
    auto& list = resident_[static_cast<std::size_t>(h)];
    auto& mask = mask_[static_cast<std::size_t>(h)];
    for (RowIndex token = pass_.begin; token < pass_.end; ++token) {
      list.push_back(static_cast<TokenIndex>(token));
      mask[static_cast<std::size_t>(token)] = 1.0F;
    }
  }
  if (driver_.selector() == nullptr) return;
  reads_.assign(reads_.size(), std::nullopt);
  driver_.selector()->select(ReplayView(*this, nullptr), reads_);
  for (std::size_t q = 0; q < reads_.size(); ++q) {
    if (!reads_[q]) continue;
    const auto& residents = mask_[q / static_cast<std::size_t>(group())];
    std::fill(read_mask_[q].begin(), read_mask_[q].end(), 0.0F);
    for (const TokenIndex token : *reads_[q]) {
      if (token < 0 || token >= pass_.end || residents[static_cast<std::size_t>(token)] == 0.0F) {
        throw PolicyError(fmt::format("{}: query head {} selects token {}, which is not resident",
                                      at(policy_, shape_, pass_), q, token));
      }
      read_mask_[q][static_cast<std::size_t>(token)] = 1.0F;
    }
  }
  count_selected(pass_.begin, pass_.end);
}

// Entries read in each row: the union over the query heads of a stored head.
void Lane::count_selected(RowIndex begin, RowIndex end) {
  for (int h = 0; h < shape_.heads; ++h) {
    std::vector<TokenIndex> read;
    for (int q = h * group(); q < (h + 1) * group(); ++q) {
      const auto& list = reads_[static_cast<std::size_t>(q)];
      const auto& all = resident_[static_cast<std::size_t>(h)];
      read.insert(read.end(), list ? list->begin() : all.begin(), list ? list->end() : all.end());
    }
    std::sort(read.begin(), read.end());
    read.erase(std::unique(read.begin(), read.end()), read.end());
    for (RowIndex row = begin; row < end; ++row) {
      const RowIndex first = block_->scores->first_key(row);
      selected_[static_cast<std::size_t>(row)] += std::upper_bound(read.begin(), read.end(), row) -
                                                  std::lower_bound(read.begin(), read.end(), first);
    }
  }
}

Lane::Attended Lane::attend_row(int query_head, RowIndex row, const float* mask, bool all,
                                Scratch& scratch) const {
  RowTerms terms;
  if (block_->has(row)) {
    terms = block_->info[block_->at(query_head, row)];
  } else {
    scratch.row.resize(static_cast<std::size_t>(padded(plan_.tokens)));
    terms = block_->scores->row(query_head, row, scratch.row);
  }
  Attended out{terms.terms, terms.sum, terms.sink, 1.0, terms.slack};
  if (all) return out;
  out.sum = kernels::masked_sum(terms.terms, mask, padded(row + 1));
  if (out.sum < kUnderflow && block_->scores->is_qkv()) {
    scratch.rescue.resize(static_cast<std::size_t>(padded(plan_.tokens)));
    double scale = 0;
    terms = block_->scores->rescued(query_head, row, mask, scratch.rescue, terms.max, scale);
    if (terms.sum > 0) out = {terms.terms, terms.sum, terms.sink, scale, 0.0};
  }
  return out;
}

void Lane::attend(RowIndex begin, RowIndex end) {
  const bool untouched =
      std::all_of(evicted_.begin(), evicted_.end(), [](char e) { return e == 0; }) &&
      driver_.selector() == nullptr;
  if (untouched) {
    for (RowIndex row = begin; row < end; ++row) {
      if (fidelity_plan_.measures(row)) fidelity_.add_unchanged(row);
    }
    if (!needs_.column_sums) return;
  }
  for (int head = 0; head < shape_.heads; ++head) attend_head(head, begin, end);
}

void Lane::attend_head(int head, RowIndex begin, RowIndex end) {
  const bool untouched =
      std::all_of(evicted_.begin(), evicted_.end(), [](char e) { return e == 0; }) &&
      driver_.selector() == nullptr;
  const auto rows = static_cast<std::size_t>(end - begin);
  std::deque<Scratch> rescued;  // keeps redone rows alive until they have been used
  Scratch scratch;
  std::vector<Attended> attended(static_cast<std::size_t>(group()) * rows);
  for (int g = 0; g < group(); ++g) {
    const int q = head * group() + g;
    const float* mask = mask_of(q);
    std::vector<const float*> terms;
    std::vector<double> inverse;
    for (RowIndex row = begin; row < end; ++row) {
      if (!block_->has(row)) continue;
      Attended a = attend_row(q, row, mask, reads_all(q), scratch);
      if (a.terms == scratch.rescue.data() && !scratch.rescue.empty()) {
        rescued.push_back(std::move(scratch));
        scratch = {};
      } else {
        readable_[block_->at(q, row)] = a.sum + a.sink;
      }
      attended[static_cast<std::size_t>(g) * rows + static_cast<std::size_t>(row - begin)] = a;
      if (needs_.column_sums && a.sum + a.sink > 0) {
        terms.push_back(a.terms);
        inverse.push_back(1.0 / (a.sum + a.sink));
        column_slack_[static_cast<std::size_t>(q)] += a.slack * inverse.back();
      }
      if (untouched || !fidelity_plan_.measures(row)) continue;
      const double full = block_->info[block_->at(q, row)].sum;
      fidelity_.add_mass(q, row, full > 0 ? a.sum * a.scale / full : 1.0);
      if (!fidelity_plan_.spans.empty()) measure_spans(q, row, mask);
    }
    if (!terms.empty()) {
      kernels::add_columns(terms.data(), inverse.data(), static_cast<std::int64_t>(terms.size()),
                           mask, padded(end), columns_[static_cast<std::size_t>(q)].data());
    }
  }
  if (!untouched && fidelity_plan_.output_error) measure_errors(head, begin, end, attended);
}

// The outputs of the query heads of one stored head, over the entries that they read, against the
// full cache's.
void Lane::measure_errors(int head, RowIndex begin, RowIndex end,
                          const std::vector<Attended>& attended) {
  const auto rows = static_cast<std::size_t>(end - begin);
  const auto dim = static_cast<std::size_t>(shape_.v_dim);
  const int kv_head = head * shape_.kv_heads / shape_.heads;
  const float* values = block_->scores->values() + kv_head * shape_.v_dim;
  const std::int64_t stride = std::int64_t{shape_.kv_heads} * shape_.v_dim;
  struct Row {
    int query_head;
    RowIndex row;
    const Attended* attended;
  };
  const auto compare = [&](const std::vector<Row>& batch, const std::vector<TokenIndex>& entries) {
    std::vector<const float*> terms;
    std::vector<double> output(batch.size() * dim, 0.0);
    std::vector<double*> out;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      terms.push_back(batch[i].attended->terms);
      out.push_back(output.data() + i * dim);
    }
    kernels::weighted_values(terms.data(), static_cast<std::int64_t>(batch.size()), entries.data(),
                             static_cast<std::int64_t>(entries.size()), values, stride,
                             shape_.v_dim, out.data());
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const RowTerms& full = block_->info[block_->at(batch[i].query_head, batch[i].row)];
      const double* whole =
          block_->full_output.data() + block_->at(batch[i].query_head, batch[i].row) * dim;
      const double kept = batch[i].attended->sum + batch[i].attended->sink;
      double difference = 0;
      double norm = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const double o_full = whole[d] / (full.sum + full.sink);
        const double o_kept = kept > 0 ? out[i][d] / kept : 0.0;
        difference += (o_kept - o_full) * (o_kept - o_full);
        norm += o_full * o_full;
      }
      const double error = difference == 0 ? 0.0
                           : norm > 0      ? std::sqrt(difference / norm)
                                           : std::numeric_limits<double>::infinity();
      fidelity_.add_error(batch[i].query_head, batch[i].row, error);
    }
  };
  std::vector<Row> shared;
  for (int g = 0; g < group(); ++g) {
    const int q = head * group() + g;
    std::vector<Row> own;
    for (RowIndex row = begin; row < end; ++row) {
      if (!block_->has(row) || !fidelity_plan_.measures(row)) continue;
      if (reads_all(q)) {
        fidelity_.add_error(q, row, 0.0);
        continue;
      }
      const Attended& a =
          attended[static_cast<std::size_t>(g) * rows + static_cast<std::size_t>(row - begin)];
      (reads_[static_cast<std::size_t>(q)] ? own : shared).push_back({q, row, &a});
    }
    if (!own.empty()) compare(own, *reads_[static_cast<std::size_t>(q)]);
  }
  if (!shared.empty()) compare(shared, resident_[static_cast<std::size_t>(head)]);
}

void Lane::measure_spans(int query_head, RowIndex row, const float* mask) {
  const RowTerms& full = block_->info[block_->at(query_head, row)];
  for (std::size_t s = 0; s < fidelity_plan_.spans.size(); ++s) {
    const Span& span = fidelity_plan_.spans[s];
    if (row < span.end || full.sum <= 0) continue;
    double lost = 0;
    for (std::int64_t t = span.begin; t < span.end; ++t) {
      if (mask[t] == 0.0F) lost += static_cast<double>(full.terms[t]);
    }
    if (lost > 0) fidelity_.add_span_loss(s, lost / full.sum);
  }
}

// A score trace may hold the column sums of the prompt's passes in place of its rows.
void Lane::add_file_column_mass() {
  for (int q = 0; q < shape_.query_heads; ++q) {
    const std::vector<float> mass = block_->scores->column_mass(q, pass_index_);
    auto& sums = columns_[static_cast<std::size_t>(q)];
    for (std::size_t j = 0; j < mass.size(); ++j) sums[j] += static_cast<double>(mass[j]);
  }
}

void Lane::end_pass() {
  if (needs_.column_sums && !block_->scores->is_qkv() && pass_.end <= plan_.prompt &&
      !block_->has(pass_.end - 1)) {
    add_file_column_mass();
  }
  const bool last = pass_.end == plan_.tokens;
  const bool due =
      policy_.store != nullptr || std::any_of(policy_.rules.begin(), policy_.rules.end(),
                                              [&](const Rule& r) { return r.schedule.due(pass_); });
  if (!last && due) {
    std::deque<ReplayView> views;
    std::vector<const View*> pointers;
    for (const Rule& rule : policy_.rules) {
      pointers.push_back(rule.schedule.due(pass_) ? &views.emplace_back(*this, &rule) : nullptr);
    }
    if (policy_.store) pointers.push_back(&views.emplace_back(*this, nullptr));
    Decision decision = driver_.end_pass(pointers);
    evict(decision);
    if (policy_.reads_lower_layers) {
      board_[static_cast<std::size_t>(shape_.layer)].emplace(pass_index_, std::move(decision));
    }
  }
  if (++pass_index_ < plan_.ends.size()) pass_ = pass_at(plan_, pass_index_);
}

void Lane::evict(const Decision& decision) {
  undecided_ += decision.undecided;
  auto& changes = ledger_.changes[static_cast<std::size_t>(shape_.layer)];
  changes.insert(changes.end(), decision.changes.begin(), decision.changes.end());
  for (const Eviction& e : decision.evictions) {
    auto& mask = mask_[static_cast<std::size_t>(e.head)];
    if (e.token < 0 || e.token >= pass_.end || mask[static_cast<std::size_t>(e.token)] == 0.0F) {
      throw PolicyError(fmt::format("{}: head {} evicts token {}, which is not resident",
                                    at(policy_, shape_, pass_), e.head, e.token));
    }
    mask[static_cast<std::size_t>(e.token)] = 0.0F;
    evicted_[static_cast<std::size_t>(e.head)] = 1;
    const std::size_t entry =
        ledger_.offset(shape_.layer, e.head) + static_cast<std::size_t>(e.token);
    ledger_.death[entry] = static_cast<std::uint32_t>(pass_.end);
    if (!ledger_.score.empty()) {
      ledger_.score[entry] = e.score;
      ledger_.rank[entry] = e.rank;
    }
  }
  for (std::size_t i = 0; i < decision.evictions.size();) {  // by head
    const int head = decision.evictions[i].head;
    const std::size_t first = i;
    while (i < decision.evictions.size() && decision.evictions[i].head == head) ++i;
    auto& list = resident_[static_cast<std::size_t>(head)];
    if (i - first == 1) {
      list.erase(std::lower_bound(list.begin(), list.end(), decision.evictions[first].token));
      continue;
    }
    const auto& mask = mask_[static_cast<std::size_t>(head)];
    std::erase_if(list, [&](TokenIndex t) { return mask[static_cast<std::size_t>(t)] == 0.0F; });
  }
}

}  // namespace kvspan
