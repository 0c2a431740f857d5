// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/lane.h"

#include <algorithm>
#include <deque>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"
#include "sim/replay/retained.h"

namespace kvspan {

using kernels::padded;

// Rows of one stored head, as its query heads attended: those of the block that somebody looks at;
// where rows have masks of their own all of them, since these are counted.
struct Lane::HeadRows {
  [[nodiscard]] std::size_t at(int in_group, std::size_t i) const {
    return static_cast<std::size_t>(in_group) * rows.size() + i;
  }
  int head = 0;
  std::vector<RowIndex> rows;           // ascending
  std::vector<AttendedRow> attended;    // [group][rows]; no terms: not looked at
  std::vector<std::vector<char>> read;  // [rows][tokens] by any query head, where rows have masks
  std::deque<RowScratch> rescued;       // keeps redone rows alive until they have been used
};

Lane::Lane(const Policy& policy, const PassPlan& plan, const Trace& trace, const LayerShape& shape,
           const FidelityPlan& fidelity, Ledger& ledger, DecisionBoard& board, SharedWork* shared)
    : policy_(policy),
      plan_(plan),
      ledger_(ledger),
      board_(board),
      now_(policy, plan, trace, shape, fidelity, ledger, board, shared),
      driver_(policy, shape),
      needs_(driver_.needs()),
      held_(trace, shape, policy.renumbers, now_.residency),
      fidelity_(fidelity, shape.query_heads, shape.layer) {
  const auto query_heads = static_cast<std::size_t>(shape.query_heads);
  now_.own_columns = shared == nullptr || !needs_.column_sums || !now_.plain || !trace.is_qkv();
  now_.columns.slack.assign(query_heads, 0.0);
  if (needs_.column_sums && now_.own_columns) begin_columns();
}

void Lane::process(const RowBlock& block, std::span<float> outputs) {
  now_.block = &block;
  outputs_ = outputs;
  now_.readable.assign(block.info.size(), 0.0);
  // Passes of the prompt end where blocks do, and the shared sums are of whole blocks.
  if (shares_columns() && block.end > plan_.prompt) own_columns();
  for (RowIndex row = block.begin; row < block.end;) {
    if (row == now_.pass.begin) begin_pass(block.end);
    const RowIndex end = std::min(now_.pass.end, block.end);
    attend(row, end);
    show(row, end);
    row = end;
    if (row == now_.pass.end) end_pass();
  }
  if (shares_columns() && !now_.residency.whole()) own_columns();
  now_.block = nullptr;
}

// ---- Attend -------------------------------------------------------------------------------------

bool Lane::untouched() const {
  return !now_.reads.selected() && held_.as_born() && now_.residency.whole();
}

void Lane::attend(RowIndex begin, RowIndex end) {
  if (untouched()) {
    for (RowIndex row = begin; row < end; ++row) {
      if (now_.fidelity.measures(row)) fidelity_.add_unchanged(row);
      for (int q = 0; q < now_.shape.query_heads && !outputs_.empty(); ++q) hand_over_full(q, row);
    }
    if (!needs_.column_sums || shares_columns()) return;
  }
  for (int head = 0; head < now_.shape.heads; ++head) attend_head(head, begin, end);
}

bool Lane::wants(int query_head, RowIndex row) const {
  return now_.block->has(row) &&
         (needs_.column_sums || needs_.observe != Observe::never || measures(query_head, row));
}

void Lane::attend_head(int head, RowIndex begin, RowIndex end) {
  const bool by_row = now_.reads.by_row();
  HeadRows rows;
  rows.head = head;
  for (RowIndex row = begin; row < end; ++row) {
    if (by_row || wants(head * group(), row)) rows.rows.push_back(row);
  }
  rows.attended.resize(static_cast<std::size_t>(group()) * rows.rows.size());
  if (by_row) rows.read.resize(rows.rows.size());
  for (int q = head * group(); q < (head + 1) * group(); ++q)
    by_row ? attend_by_row(q, rows) : attend_rows(q, rows);
  now_.reads.count_rows(head, begin, rows.read);
  if (untouched() || !now_.fidelity.output_error) return;
  if (held_.differ(head) || by_row) {
    measure_held(rows);
  } else {
    measure_outputs(rows);
  }
}

namespace {

// A row with a mask of its own has read what any query head of the group reads, inside the model's
// own window.
void note_reads(const float* mask, RowIndex first_key, RowIndex row, std::vector<char>& read) {
  read.resize(static_cast<std::size_t>(row + 1), 0);
  for (auto t = static_cast<std::size_t>(first_key); t < read.size(); ++t)
    read[t] |= mask[t] != 0.0F ? 1 : 0;
}

}  // namespace

// Rows under one mask.
void Lane::attend_rows(int query_head, HeadRows& rows) {
  const std::size_t first = rows.at(query_head % group(), 0);
  const std::span<AttendedRow> attended = std::span(rows.attended).subspan(first, rows.rows.size());
  const float* mask = now_.reads.mask(query_head);
  const bool everything = now_.reads.everything(query_head);
  kvspan::attend_rows(*now_.block, query_head, rows.rows, everything ? nullptr : mask, rows.rescued,
                      attended);
  for (std::size_t i = 0; i < attended.size(); ++i) {
    const RowIndex row = rows.rows[i];
    if (attended[i].scale == 1.0)
      now_.readable[now_.block->at(query_head, row)] = attended[i].whole();
    if (!untouched() && measures(query_head, row)) measure_mass(query_head, row, attended[i], mask);
  }
  if (needs_.column_sums && !shares_columns())
    add_columns(query_head, rows, 0, attended.size(), mask);
}

// Rows with masks of their own.
void Lane::attend_by_row(int query_head, HeadRows& rows) {
  const RowBlock& block = *now_.block;
  std::vector<float> storage;
  for (std::size_t i = 0; i < rows.rows.size(); ++i) {
    const RowIndex row = rows.rows[i];
    const float* mask = mask_of(now_, query_head, row, storage);
    note_reads(mask, block.scores->first_key(row), row, rows.read[i]);
    if (!wants(query_head, row)) continue;
    AttendedRow& attended = rows.attended[rows.at(query_head % group(), i)];
    kvspan::attend_rows(block, query_head, {&row, 1}, mask, rows.rescued, {&attended, 1});
    if (attended.scale == 1.0) now_.readable[block.at(query_head, row)] = attended.whole();
    if (needs_.column_sums) add_columns(query_head, rows, i, i + 1, mask);
    if (measures(query_head, row)) measure_mass(query_head, row, attended, mask);
  }
}

// p' of rows [begin, end) of `rows`, under one mask.
void Lane::add_columns(int query_head, const HeadRows& rows, std::size_t begin, std::size_t end,
                       const float* mask) {
  std::vector<const float*> terms;
  std::vector<double> inverse;
  const auto q = static_cast<std::size_t>(query_head);
  for (std::size_t i = begin; i < end; ++i) {
    const AttendedRow& a = rows.attended[rows.at(query_head % group(), i)];
    if (!(a.whole() > 0)) continue;
    terms.push_back(a.terms);
    inverse.push_back(1.0 / a.whole());
    now_.columns.slack[q] += a.slack * inverse.back();
  }
  if (terms.empty()) return;
  kernels::add_columns(terms.data(), inverse.data(), std::ssize(terms), mask,
                       padded(rows.rows[end - 1] + 1), now_.columns.sums[q].data());
}

// Roles that watch rows.
void Lane::show(RowIndex begin, RowIndex end) {
  if (needs_.observe == Observe::never) return;
  driver_.observe(ReplayView(now_, nullptr), begin, end);
}

// ---- Measure ------------------------------------------------------------------------------------

void Lane::measure_mass(int query_head, RowIndex row, const AttendedRow& attended,
                        const float* mask) {
  const RowTerms& full = now_.block->full(query_head, row);
  const RowIndex first = now_.block->scores->first_key(row);
  MassInterval mass{1, 1};
  if (full.sum > 0) {
    mass.low = mass.high = attended.sum * attended.scale / full.sum;
    if (now_.fidelity.intervals) mass = retained_interval(full, mask, first, row + 1);
  }
  fidelity_.add_mass(query_head, row, mass);
  if (full.sum <= 0) return;
  for (std::size_t s = 0; s < now_.fidelity.spans.size(); ++s) {
    const Span& span = now_.fidelity.spans[s];
    if (row < span.end) continue;
    const KeyGroup gone = group_of(full, mask, false, std::max(span.begin, first), span.end);
    MassInterval lost{gone.sum, gone.sum};
    if (now_.fidelity.intervals) {
      lost = gone.mass(full.cut);
      lost.high = std::min(lost.high, (1 - mass.low) * full.sum);
    }
    fidelity_.add_span_loss(s, row, {lost.low / full.sum, lost.high / full.sum});
  }
}

const double* Lane::full_output(int query_head, RowIndex row) const {
  return now_.block->full_output.data() +
         now_.block->at(query_head, row) * static_cast<std::size_t>(now_.shape.v_dim);
}

float* Lane::output_of(int query_head, RowIndex row) const {
  if (outputs_.empty()) return nullptr;
  const RowIndex at = (row - now_.block->begin) * now_.shape.query_heads + query_head;
  return outputs_.data() + at * now_.shape.v_dim;
}

void Lane::hand_over_full(int query_head, RowIndex row) const {
  float* out = output_of(query_head, row);
  if (out == nullptr) return;
  const RowTerms& full = now_.block->full(query_head, row);
  normalise({full_output(query_head, row), static_cast<std::size_t>(now_.shape.v_dim)},
            full.sum + full.sink, out);
}

// The outputs of the query heads of one stored head, over the entries that they read, against the
// full cache's.
void Lane::measure_outputs(const HeadRows& rows) {
  struct Row {
    int query_head;
    RowIndex row;
    const AttendedRow* attended;
  };
  const auto dim = static_cast<std::size_t>(now_.shape.v_dim);
  const auto compare = [&](const std::vector<Row>& batch, std::span<const TokenIndex> entries) {
    std::vector<const float*> terms;
    std::vector<double> output(batch.size() * dim, 0.0);
    std::vector<double*> out;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      terms.push_back(batch[i].attended->terms);
      out.push_back(output.data() + i * dim);
    }
    // Nothing is read behind the last row: terms there are 0.
    const auto last = std::upper_bound(entries.begin(), entries.end(), rows.rows.back());
    kernels::weighted_values(terms.data(), std::ssize(batch), entries.data(),
                             last - entries.begin(),
                             now_.block->scores->values(now_.shape.kv_head(rows.head)),
                             now_.shape.v_dim, now_.shape.v_dim, out.data());
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const auto& [q, row, attended] = batch[i];
      const RowTerms& full = now_.block->full(q, row);
      fidelity_.add_error(q, row,
                          relative_error({full_output(q, row), dim}, full.sum + full.sink,
                                         {out[i], dim}, attended->whole()));
      if (float* wanted = output_of(q, row)) normalise({out[i], dim}, attended->whole(), wanted);
    }
  };
  std::vector<Row> shared;
  for (int g = 0; g < group(); ++g) {
    const int q = rows.head * group() + g;
    const std::vector<TokenIndex>* chosen = now_.reads.chosen(q);
    std::vector<Row> own;
    for (std::size_t i = 0; i < rows.rows.size(); ++i) {
      const RowIndex row = rows.rows[i];
      if (!measures(q, row)) continue;
      if (now_.reads.everything(q)) {
        fidelity_.add_error(q, row, 0.0);
        hand_over_full(q, row);
        continue;
      }
      (chosen != nullptr ? own : shared).push_back({q, row, &rows.attended[rows.at(g, i)]});
    }
    if (!own.empty()) compare(own, *chosen);
  }
  if (!shared.empty()) compare(shared, now_.residency.entries(rows.head));
}

// Rows whose keys, values or positions are not the trace's: logits are taken anew, from what is
// held.
void Lane::measure_held(const HeadRows& rows) {
  const RowBlock& block = *now_.block;
  const auto measure = [&](const HeldVectors::Rows& read) {
    if (read.queries.empty()) return;
    const std::vector<HeldVectors::Error> errors =
        held_.errors(read, *block.scores, driver_.store());
    for (std::size_t i = 0; i < errors.size(); ++i) {
      const auto& [head, row, full, full_output, output] = read.queries[i];
      if (errors[i].logits) fidelity_.add_logit_error(head, row, *errors[i].logits);
      fidelity_.add_error(head, row, errors[i].output);
    }
  };
  const auto residents = now_.residency.entries(rows.head);
  // Many rows at a time, where sums over entries begin at the same one.
  const bool together = !now_.reads.selected() && block.scores->window() == 0;
  HeldVectors::Rows all;
  std::vector<float> storage;
  for (const RowIndex row : rows.rows) {
    if (!block.has(row) || !measures(rows.head * group(), row)) continue;
    for (int q = rows.head * group(); q < (rows.head + 1) * group(); ++q) {
      const HeldVectors::Query query{q, row, &block.full(q, row), full_output(q, row),
                                     output_of(q, row)};
      if (together) {
        all.queries.push_back(query);
        continue;
      }
      const float* mask = mask_of(now_, q, row, storage);
      std::vector<TokenIndex> entries;
      for (const TokenIndex t : residents) {
        if (t <= row && t >= block.scores->first_key(row) && mask[t] != 0.0F) entries.push_back(t);
      }
      measure({entries, {query}});
    }
  }
  if (all.queries.empty()) return;
  const RowIndex last = all.queries.back().row;
  all.entries = {residents.begin(), std::upper_bound(residents.begin(), residents.end(), last)};
  measure(all);
}

// ---- End of a pass ------------------------------------------------------------------------------

// A score trace may hold the column sums of the prompt's passes in place of its rows.
void Lane::add_file_column_mass() {
  for (int q = 0; q < now_.shape.query_heads; ++q) {
    const std::vector<float> mass = now_.block->scores->column_mass(q, now_.pass_index);
    auto& sums = now_.columns.sums[static_cast<std::size_t>(q)];
    for (std::size_t j = 0; j < mass.size(); ++j) sums[j] += static_cast<double>(mass[j]);
  }
}

void Lane::end_pass() {
  if (needs_.column_sums && !now_.block->scores->is_qkv() && now_.pass.end <= plan_.prompt &&
      !now_.block->has(now_.pass.end - 1)) {
    add_file_column_mass();
  }
  const bool last = now_.pass.end == plan_.tokens;
  if (!last && driver_.due(now_.pass)) {
    std::deque<ReplayView> storage;
    const std::vector<const View*> shown_to = views(storage);
    if (surveys()) {
      shown_ = driver_.show(shown_to);
      return;
    }
    Decision decision = driver_.end_pass(shown_to);
    apply(decision);
    if (policy_.reads_lower_layers) {
      board_.decisions[static_cast<std::size_t>(now_.shape.layer)].emplace(now_.pass_index,
                                                                           std::move(decision));
    }
  }
  if (++now_.pass_index < plan_.ends.size()) now_.pass = pass_at(plan_, now_.pass_index);
}

bool Lane::surveys() const {
  return now_.pass.is_evict_point() && board_.shares.empty() && coupled_rule(policy_);
}

// One of each rule that is due, null for the others; and one of the store.
std::vector<const View*> Lane::views(std::deque<ReplayView>& storage) const {
  std::vector<const View*> pointers;
  for (std::size_t r = 0; r < policy_.rules.size(); ++r) {
    pointers.push_back(driver_.due(now_.pass, r) ? &storage.emplace_back(now_, &policy_.rules[r])
                                                 : nullptr);
  }
  if (driver_.store() != nullptr) pointers.push_back(&storage.emplace_back(now_, nullptr));
  return pointers;
}

void Lane::apply(const Decision& decision) {
  undecided_ += decision.undecided;
  if (now_.fidelity.output_error && now_.trace.is_qkv()) {
    if (!decision.rewrites.empty() || (policy_.renumbers && !decision.evictions.empty()))
      held_.rewrite(decision.rewrites, *now_.block->scores);
    if (driver_.store() != nullptr && driver_.store()->adds_output()) held_.absorb();
  }
  auto& changes = ledger_.changes[static_cast<std::size_t>(now_.shape.layer)];
  changes.insert(changes.end(), decision.changes.begin(), decision.changes.end());
  if (const Eviction* e = now_.residency.evict(decision.evictions)) {
    throw PolicyError(fmt::format("{}: head {} evicts token {}, which is not resident",
                                  at(policy_, now_.shape, now_.pass), e->head, e->token));
  }
  for (const Arrangement& a : decision.arrangements) now_.residency.arrange(a);
  for (const Eviction& e : decision.evictions) {
    const std::size_t entry =
        ledger_.offset(now_.shape.layer, e.head) + static_cast<std::size_t>(e.token);
    ledger_.death[entry] = static_cast<std::uint32_t>(now_.pass.end);
    if (!ledger_.score.empty()) {
      ledger_.score[entry] = e.score;
      ledger_.rank[entry] = e.rank;
    }
  }
}

}  // namespace kvspan
