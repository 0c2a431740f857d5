// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/lane.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"

namespace kvspan {

using kernels::padded;

// Below this the readable keys lie some 57 nats under the row's maximum, and their fp32 terms lose
// digits: the row is redone with its maximum taken over the readable keys.
constexpr double kUnderflow = 1e-25;

namespace {

void set_bit(std::uint8_t* bits, TokenIndex t) {
  bits[t / 8] = static_cast<std::uint8_t>(bits[t / 8] | (1U << (static_cast<unsigned>(t) % 8U)));
}

}  // namespace

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
    for (RowIndex row = now.end - rows; row < now.end; ++row)
      slack += add_row(query_head, row, entries, out);
    return slack;
  }

  double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                       std::span<double> out) const override {
    std::fill(out.begin(), out.end(), 0.0);
    return add_row(query_head, row, entries, out);
  }

  void logits(int query_head, RowIndex row, std::span<const TokenIndex> entries,
              std::span<double> out) const override {
    // Formed anew: taken back from exp(z - max), logits of two rows or heads that are equal on paper
    // would differ.
    const LayerScores& scores = *lane_.block_->scores;
    scratch_.row.resize(static_cast<std::size_t>(padded(lane_.plan_.tokens)));
    scores.logits(query_head, row, scratch_.row);
    const auto first = static_cast<TokenIndex>(scores.first_key(row));
    const float highest =
        *std::max_element(scratch_.row.begin() + first, scratch_.row.begin() + row + 1);
    const float* mask = mask_of(query_head, row);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const TokenIndex t = entries[i];
      const bool readable = t >= first && t <= row && mask[t] != 0.0F;
      const float z = readable ? scratch_.row[static_cast<std::size_t>(t)] : 0.0F;
      out[i] = readable && z >= highest - 87.0F ? static_cast<double>(z)
                                                : -std::numeric_limits<double>::infinity();
    }
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
  double score_scale() const override { return lane_.trace_.meta().score_scale; }
  const Rope* rope() const override {
    const auto& rope = lane_.trace_.meta().rope;
    return rope ? &*rope : nullptr;
  }
  bool measures_output() const override { return lane_.fidelity_plan_.output_error; }

 private:
  // Adds p' of one row to `out`; returns 1 / sum.
  static double add(const float* terms, const float* mask, double sum, RowIndex row,
                    std::span<const TokenIndex> entries, std::span<double> out) {
    if (!(sum > 0)) return 0;
    const double inverse = 1.0 / sum;
    if (mask == nullptr) {  // the entries are read, all of them
      for (std::size_t i = 0; i < entries.size() && entries[i] <= row; ++i)
        out[i] += static_cast<double>(terms[entries[i]]) * inverse;
      return inverse;
    }
    for (std::size_t i = 0; i < entries.size() && entries[i] <= row; ++i) {
      out[i] +=
          static_cast<double>(terms[entries[i]]) * static_cast<double>(mask[entries[i]]) * inverse;
    }
    return inverse;
  }

  // Adds p' of one row; returns its slack.
  double add_row(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                 std::span<double> out) const {
    const bool selected = newborns_.empty() && lane_.selector_ != nullptr;
    const float* mask = newborns_.empty() ? mask_of(query_head, row) : newborns_.data();
    const double known = newborns_.empty() ? cached(query_head, row) : 0.0;
    Lane::Attended a;
    if (known > 0) {
      const RowTerms& info = lane_.block_->info[lane_.block_->at(query_head, row)];
      a.terms = info.terms;
      a.slack = info.slack;
      a.sum = known;
    } else {
      const bool all = newborns_.empty() && lane_.reads_all(query_head);
      a = lane_.attend_row(query_head, row, mask, all, scratch_);
      a.sum += a.sink;
    }
    return a.slack * add(a.terms, selected ? mask : nullptr, a.sum, row, entries, out);
  }

  const float* mask_of(int query_head, RowIndex row) const {
    return lane_.mask_of(query_head, row, mask_storage_);
  }

  RowTerms terms_of(int query_head, RowIndex row) const {
    if (lane_.block_->has(row)) return lane_.block_->info[lane_.block_->at(query_head, row)];
    scratch_.row.resize(static_cast<std::size_t>(padded(lane_.plan_.tokens)));
    return lane_.block_->scores->row(query_head, row, scratch_.row);
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
    const float* mask = newborn ? newborns_.data() : mask_of(query_head, now.end - 1);
    std::vector<float> terms(static_cast<std::size_t>(padded(lane_.plan_.tokens)));
    const LayerScores& scores = *lane_.block_->scores;
    for (RowIndex i = 0; i < rows; ++i) {
      const RowIndex position = now.end + i;
      const RowIndex first = std::max(newborn ? now.begin : 0, scores.first_key(position));
      if (first >= now.end) continue;
      const RowTerms t =
          scores.probe(query_head, now.evict_at - rows + i, position, first, now.end, terms);
      add(t.terms, nullptr, kernels::masked_sum(t.terms, mask, padded(now.end)) + t.sink, now.end,
          entries, out);
    }
    return 0;
  }

  std::vector<float> vector(const TensorView* tensor, std::int64_t index, int dim,
                            const char* name) const {
    std::vector<float> out(static_cast<std::size_t>(dim));
    std::string& full_name = names_[static_cast<std::size_t>(name[0]) % names_.size()];
    if (full_name.empty())  // once a view: roles ask for every key
      full_name = fmt::format("{}: layers.{}.{}", lane_.trace_.name(), shape().layer, name);
    widen(*tensor, index * dim, out, full_name);
    return out;
  }

  Lane& lane_;
  const Rule* rule_;
  std::vector<float> newborns_;
  mutable Lane::Scratch scratch_;
  mutable std::vector<float> mask_storage_;
  mutable std::array<std::string, 16> names_;  // of tensors q, k, v, by letter
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
  if (driver_.selects()) read_mask_.assign(query_heads, std::vector<float>(keys, 0.0F));
  // Also in a layer that is left alone, whose rows read everything.
  if (policy.selector || policy.prefill_reads)
    selected_.assign(static_cast<std::size_t>(plan.tokens), 0);
  if (needs_.column_sums) columns_.assign(query_heads, std::vector<double>(keys, 0.0));
  column_slack_.assign(query_heads, 0.0);
}

Lane::~Lane() = default;

const float* Lane::mask_of(int query_head, RowIndex row, std::vector<float>& storage) {
  const auto q = static_cast<std::size_t>(query_head);
  const std::vector<float>& residents = mask_[static_cast<std::size_t>(query_head / group())];
  if (by_row()) {
    // A row of an earlier pass is looked at over today's entries.
    storage.assign(residents.size(), 0.0F);
    std::copy(residents.begin(), residents.begin() + row + 1, storage.begin());
    if (row >= pass_.begin) selector_->mask(ReplayView(*this, nullptr), query_head, row, storage);
    return storage.data();
  }
  return reads_[q].attended ? read_mask_[q].data() : residents.data();
}

bool Lane::reads_all(int query_head) const {
  return evicted_[static_cast<std::size_t>(query_head / group())] == 0 && !by_row() &&
         !reads_[static_cast<std::size_t>(query_head)].attended;
}

void Lane::process(const RowBlock& block) {
  block_ = &block;
  readable_.assign(block.info.size(), 0.0);
  for (RowIndex row = block.begin; row < block.end;) {
    if (row == pass_.begin) begin_pass();
    const RowIndex end = std::min(pass_.end, block.end);
    attend(row, end);
    show(row, end);
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
  selector_ = driver_.selector(pass_);
  reads_.assign(reads_.size(), {});
  if (selector_ == nullptr) {
    if (!selected_.empty()) count_selected(pass_.begin, pass_.end);
    return;
  }
  if (by_row()) return;  // counted row by row
  selector_->select(ReplayView(*this, nullptr), reads_);
  for (std::size_t q = 0; q < reads_.size(); ++q) {
    if (!reads_[q].attended) continue;
    const auto& residents = mask_[q / static_cast<std::size_t>(group())];
    std::fill(read_mask_[q].begin(), read_mask_[q].end(), 0.0F);
    for (const TokenIndex token : *reads_[q].attended) {
      if (token < 0 || token >= pass_.end || residents[static_cast<std::size_t>(token)] == 0.0F) {
        throw PolicyError(fmt::format("{}: query head {} selects token {}, which is not resident",
                                      at(policy_, shape_, pass_), q, token));
      }
      read_mask_[q][static_cast<std::size_t>(token)] = 1.0F;
    }
  }
  count_selected(pass_.begin, pass_.end);
}

// Counts the entries that each row loads, and keeps those that sampled rows attend to: the union over
// the query heads of a stored head.
void Lane::count_selected(RowIndex begin, RowIndex end) {
  std::vector<TokenIndex> tokens;
  const auto in_row = [&](RowIndex row) {
    return std::pair(std::lower_bound(tokens.begin(), tokens.end(), block_->scores->first_key(row)),
                     std::upper_bound(tokens.begin(), tokens.end(), row));
  };
  for (int h = 0; h < shape_.heads; ++h) {
    const auto unite = [&](auto list_of) {
      tokens.clear();
      for (int q = h * group(); q < (h + 1) * group(); ++q) {
        const auto& list = list_of(reads_[static_cast<std::size_t>(q)]);
        const auto& all = resident_[static_cast<std::size_t>(h)];
        tokens.insert(tokens.end(), list ? list->begin() : all.begin(),
                      list ? list->end() : all.end());
      }
      std::sort(tokens.begin(), tokens.end());
      tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    };
    unite([](const Reads& reads) -> const auto& {
      return reads.loaded ? reads.loaded : reads.attended;
    });
    for (RowIndex row = begin; row < end; ++row) {
      const auto [first, last] = in_row(row);
      selected_[static_cast<std::size_t>(row)] += last - first;
    }
    if (ledger_.read_rows.empty()) continue;
    unite([](const Reads& reads) -> const auto& { return reads.attended; });
    for (RowIndex row = begin; row < end; ++row) {
      std::uint8_t* bits = bits_of(h, row);
      if (bits == nullptr) continue;
      const auto [first, last] = in_row(row);
      std::for_each(first, last, [&](TokenIndex t) { set_bit(bits, t); });
    }
  }
}

// Where the reads of a row are kept; null where the row is not in the sample.
std::uint8_t* Lane::bits_of(int head, RowIndex row) {
  const std::vector<RowIndex>& rows = ledger_.read_rows;
  const auto at = std::lower_bound(rows.begin(), rows.end(), row);
  if (at == rows.end() || *at != row) return nullptr;
  return ledger_.reads.data() +
         ledger_.reads_offset(shape_.layer, head, static_cast<std::size_t>(at - rows.begin()));
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
  if (untouched()) {
    for (RowIndex row = begin; row < end; ++row) {
      if (fidelity_plan_.measures(row)) fidelity_.add_unchanged(row);
    }
    if (!needs_.column_sums) return;
  }
  for (int head = 0; head < shape_.heads; ++head) attend_head(head, begin, end);
}

// Every row reads the full cache, as the model left it.
bool Lane::untouched() const {
  return selector_ == nullptr && altered_.panels.empty() && !absorbed_ &&
         std::all_of(evicted_.begin(), evicted_.end(), [](char e) { return e == 0; });
}

void Lane::attend_head(int head, RowIndex begin, RowIndex end) {
  const bool unchanged = untouched();
  const auto rows = static_cast<std::size_t>(end - begin);
  std::deque<Scratch> rescued;  // keeps redone rows alive until they have been used
  Scratch scratch;
  std::vector<float> mask_storage;
  std::vector<std::vector<char>> read(by_row() ? rows : 0);  // [rows][tokens] by any query head
  std::vector<Attended> attended(static_cast<std::size_t>(group()) * rows);
  for (int g = 0; g < group(); ++g) {
    const int q = head * group() + g;
    std::vector<const float*> terms;
    std::vector<double> inverse;
    const float* mask = nullptr;
    const auto flush = [&](RowIndex last) {
      if (terms.empty()) return;
      kernels::add_columns(terms.data(), inverse.data(), static_cast<std::int64_t>(terms.size()),
                           mask, padded(last), columns_[static_cast<std::size_t>(q)].data());
      terms.clear();
      inverse.clear();
    };
    for (RowIndex row = begin; row < end; ++row) {
      if (by_row()) flush(row);
      if (by_row() || mask == nullptr) mask = mask_of(q, row, mask_storage);
      if (by_row()) note_reads(mask, row, read[static_cast<std::size_t>(row - begin)]);
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
      if (unchanged || !fidelity_plan_.measures(row)) continue;
      const double full = block_->info[block_->at(q, row)].sum;
      fidelity_.add_mass(q, row, full > 0 ? a.sum * a.scale / full : 1.0);
      if (!fidelity_plan_.spans.empty()) measure_spans(q, row, mask);
    }
    flush(end);
  }
  for (std::size_t i = 0; i < read.size(); ++i) {
    selected_[static_cast<std::size_t>(begin) + i] += std::count(read[i].begin(), read[i].end(), 1);
    std::uint8_t* bits = bits_of(head, begin + static_cast<RowIndex>(i));
    for (std::size_t t = 0; bits != nullptr && t < read[i].size(); ++t) {
      if (read[i][t] != 0) set_bit(bits, static_cast<TokenIndex>(t));
    }
  }
  if (unchanged || !fidelity_plan_.output_error) return;
  const int kv_head = shape_.kv_head(head);
  const bool altered =
      absorbed_ || (policy_.renumbers && evicted_[static_cast<std::size_t>(head)] != 0) ||
      (!altered_.heads.empty() && altered_.heads[static_cast<std::size_t>(kv_head)] != 0);
  if (altered || by_row()) {
    measure_altered(head, begin, end);
  } else {
    measure_errors(head, begin, end, attended);
  }
}

// A row with a mask of its own has read what any query head of the group reads, inside the model's own
// window.
void Lane::note_reads(const float* mask, RowIndex row, std::vector<char>& read) const {
  read.resize(static_cast<std::size_t>(row + 1), 0);
  const auto first = static_cast<std::size_t>(block_->scores->first_key(row));
  for (std::size_t t = first; t < read.size(); ++t) read[t] |= mask[t] != 0.0F ? 1 : 0;
}

// Roles that watch rows.
void Lane::show(RowIndex begin, RowIndex end) {
  if (needs_.observe == Observe::never) return;
  driver_.observe(ReplayView(*this, nullptr), begin, end);
}

// The outputs of the query heads of one stored head, over the entries that they read, against the
// full cache's.
void Lane::measure_errors(int head, RowIndex begin, RowIndex end,
                          const std::vector<Attended>& attended) {
  const auto rows = static_cast<std::size_t>(end - begin);
  const auto dim = static_cast<std::size_t>(shape_.v_dim);
  const int kv_head = shape_.kv_head(head);
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
      (reads_[static_cast<std::size_t>(q)].attended ? own : shared).push_back({q, row, &a});
    }
    if (!own.empty()) compare(own, *reads_[static_cast<std::size_t>(q)].attended);
  }
  if (!shared.empty()) compare(shared, resident_[static_cast<std::size_t>(head)]);
}

// Rows whose keys, values or positions are not the trace's: logits are taken anew, from what is held.
void Lane::measure_altered(int head, RowIndex begin, RowIndex end) {
  std::vector<float> storage;
  for (int g = 0; g < group(); ++g) {
    const int q = head * group() + g;
    for (RowIndex row = begin; row < end; ++row) {
      if (!block_->has(row) || !fidelity_plan_.measures(row)) continue;
      const float* mask = mask_of(q, row, storage);
      std::vector<TokenIndex> entries;
      for (const TokenIndex t : resident_[static_cast<std::size_t>(head)]) {
        if (t <= row && t >= block_->scores->first_key(row) && mask[t] != 0.0F)
          entries.push_back(t);
      }
      altered_row(q, row, entries);
    }
  }
}

void Lane::altered_row(int query_head, RowIndex row, std::span<const TokenIndex> entries) {
  const TraceMeta& m = trace_.meta();
  const int kv_head = query_head / (shape_.query_heads / shape_.kv_heads);
  const bool held = !altered_.panels.empty();
  const RowTerms& full = block_->info[block_->at(query_head, row)];
  std::vector<float> q(static_cast<std::size_t>(m.head_dim));
  widen(*trace_.q(shape_.layer), (row * m.query_heads + query_head) * m.head_dim, q, "q");
  const auto keys = static_cast<std::size_t>(padded(row + 1));
  std::vector<float> terms(keys, 0.0F);
  if (!held && !policy_.renumbers) {
    // Only the state of victims differs: the row's own terms, relative to its own maximum.
    for (const TokenIndex t : entries) terms[static_cast<std::size_t>(t)] = full.terms[t];
  } else {
    std::vector<float> z(keys);
    float* out = z.data();
    // Runs of entries that moved by the same number of places share one rotated query.
    const auto& list = resident_[static_cast<std::size_t>(query_head / group())];
    const auto shift_of = [&](std::int64_t token) {  // places by which an entry has moved up
      return token - (std::lower_bound(list.begin(), list.end(), token) - list.begin());
    };
    const std::int64_t own_shift = policy_.renumbers ? shift_of(row) : 0;
    for (std::size_t i = 0; i < entries.size();) {
      const std::int64_t shift = policy_.renumbers ? shift_of(entries[i]) : 0;
      std::size_t j = i + 1;
      while (j < entries.size() && (!policy_.renumbers || shift_of(entries[j]) == shift)) ++j;
      std::vector<float> turned = q;
      if (own_shift != shift) rotate(*m.rope, static_cast<double>(shift - own_shift), turned);
      const float* pointer = turned.data();
      kernels::logits(&pointer, 1, m.head_dim,
                      altered_.panels.data() + kv_head * padded(m.tokens) * m.head_dim,
                      entries[i] / kernels::kPanel, entries[j - 1] / kernels::kPanel + 1,
                      static_cast<float>(m.score_scale), static_cast<float>(m.logit_softcap), &out);
      for (; i < j; ++i)
        terms[static_cast<std::size_t>(entries[i])] = z[static_cast<std::size_t>(entries[i])];
    }
    float highest = -std::numeric_limits<float>::infinity();
    for (const TokenIndex t : entries)
      highest = std::max(highest, terms[static_cast<std::size_t>(t)]);
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
    if (weight > 0) fidelity_.add_logit_error(query_head, row, error / weight);
    finish_altered(query_head, row, q, entries, terms, static_cast<double>(highest));
    return;
  }
  finish_altered(query_head, row, q, entries, terms, full.max);
}

// terms = exp(z - max) at the entries.
void Lane::finish_altered(int query_head, RowIndex row, std::span<const float> q,
                          std::span<const TokenIndex> entries, const std::vector<float>& terms,
                          double max) {
  const auto dim = static_cast<std::size_t>(shape_.v_dim);
  const int kv_head = query_head / (shape_.query_heads / shape_.kv_heads);
  const float* values =
      (altered_.values.empty() ? block_->scores->values() : altered_.values.data()) +
      kv_head * shape_.v_dim;
  std::vector<double> output(dim, 0.0);
  const float* row_terms = terms.data();
  double* out = output.data();
  kernels::weighted_values(&row_terms, 1, entries.data(), static_cast<std::int64_t>(entries.size()),
                           values, std::int64_t{shape_.kv_heads} * shape_.v_dim, shape_.v_dim,
                           &out);
  const RowTerms& full = block_->info[block_->at(query_head, row)];
  double sum = full.sink > 0 ? full.sink * std::exp(full.max - max) : 0.0;
  for (const TokenIndex t : entries) sum += static_cast<double>(terms[static_cast<std::size_t>(t)]);
  if (absorbed_) driver_.store()->add_output(query_head, q, max, output, sum);
  const double* whole = block_->full_output.data() + block_->at(query_head, row) * dim;
  double difference = 0;
  double norm = 0;
  for (std::size_t d = 0; d < dim; ++d) {
    const double o_full = whole[d] / (full.sum + full.sink);
    const double o_held = sum > 0 ? output[d] / sum : 0.0;
    difference += (o_held - o_full) * (o_held - o_full);
    norm += o_full * o_full;
  }
  fidelity_.add_error(query_head, row,
                      difference == 0 ? 0.0
                      : norm > 0      ? std::sqrt(difference / norm)
                                      : std::numeric_limits<double>::infinity());
}

// Copies the layer's keys and values when something first differs from them.
void Lane::hold_altered(const std::vector<Rewrite>& rewrites) {
  const TraceMeta& m = trace_.meta();
  const std::int64_t panel_stride = padded(m.tokens) * m.head_dim;
  if (altered_.panels.empty()) {
    altered_.heads.assign(static_cast<std::size_t>(m.kv_heads), 0);
    const std::span<const float> panels = block_->scores->key_panels();
    altered_.panels.assign(panels.begin(), panels.end());
    const float* values = block_->scores->values();
    altered_.values.assign(values, values + m.tokens * m.kv_heads * m.v_head_dim);
  }
  for (const Rewrite& r : rewrites) {
    altered_.heads[static_cast<std::size_t>(r.kv_head)] = 1;
    const std::int64_t panel = r.token / kernels::kPanel * kernels::kPanel * m.head_dim;
    for (std::size_t d = 0; d < r.k.size(); ++d) {
      altered_.panels[static_cast<std::size_t>(r.kv_head * panel_stride + panel +
                                               static_cast<std::int64_t>(d) * kernels::kPanel +
                                               r.token % kernels::kPanel)] = r.k[d];
    }
    std::copy(
        r.v.begin(), r.v.end(),
        altered_.values.begin() + (std::int64_t{r.token} * m.kv_heads + r.kv_head) * m.v_head_dim);
  }
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
  if (!last && driver_.due(pass_)) {
    std::deque<ReplayView> views;
    std::vector<const View*> pointers;
    for (std::size_t r = 0; r < policy_.rules.size(); ++r) {
      pointers.push_back(driver_.due(pass_, r) ? &views.emplace_back(*this, &policy_.rules[r])
                                               : nullptr);
    }
    if (driver_.store() != nullptr) pointers.push_back(&views.emplace_back(*this, nullptr));
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
  if (fidelity_plan_.output_error && trace_.is_qkv()) {
    if (!decision.rewrites.empty() || (policy_.renumbers && !decision.evictions.empty()))
      hold_altered(decision.rewrites);
    if (driver_.store() != nullptr && driver_.store()->adds_output()) absorbed_ = true;
  }
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
