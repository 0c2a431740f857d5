// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/row_block.h"

#include <algorithm>

#include "sim/attention/kernels.h"

namespace kvspan {

using kernels::padded;

namespace {

// Below this the readable keys lie some 57 nats under the row's maximum, and their fp32 terms lose
// digits: the row is redone with its maximum taken over the readable keys.
constexpr double kUnderflow = 1e-25;

constexpr std::size_t kAheadRows = 16;  // that are computed together

AttendedRow reading(const RowTerms& terms, double sum, double scale, double slack) {
  return {terms.terms, sum, terms.sink, scale, slack};
}

// `row` with its maximum over the keys of the mask, if it reads too little of its sum.
AttendedRow rescued(const RowBlock& block, int query_head, RowIndex row, const RowTerms& terms,
                    const float* mask, double sum, std::vector<float>& storage) {
  const AttendedRow out = reading(terms, sum, 1.0, terms.slack);
  if (sum >= kUnderflow || !block.scores->is_qkv()) return out;
  storage.resize(index(padded(block.tokens)));
  double scale = 0;
  const RowTerms again = block.scores->rescued(query_head, row, mask, storage, terms.max, scale);
  return again.sum > 0 ? reading(again, again.sum, scale, 0.0) : out;
}

const RowTerms* found(const RowScratch::Ahead& ahead, int query_head, RowIndex row) {
  if (ahead.query_head != query_head) return nullptr;
  const auto at = std::lower_bound(ahead.rows.begin(), ahead.rows.end(), row);
  if (at == ahead.rows.end() || *at != row) return nullptr;
  return &ahead.terms[index(at - ahead.rows.begin())];
}

}  // namespace

void RowBlock::move_to(RowIndex from, RowIndex to, std::span<const char> needed) {
  begin = from;
  end = to;
  rows.clear();
  places_.assign(index(to - from), -1);
  for (RowIndex row = from; row < to; ++row) {
    if (needed[index(row)] == 0) continue;
    places_[index(row - from)] = static_cast<std::int32_t>(rows.size());
    rows.push_back(row);
  }
}

RowIndex look_ahead(const RowBlock& block, int query_head, RowIndex begin, RowIndex end,
                    RowScratch& scratch) {
  RowScratch::Ahead& ahead = scratch.ahead;
  ahead.query_head = query_head;
  ahead.rows.clear();
  for (; begin < end && ahead.rows.size() < kAheadRows; ++begin) {
    if (!block.has(begin)) ahead.rows.push_back(begin);
  }
  if (ahead.rows.empty()) return begin;
  const std::size_t keys = index(padded(ahead.rows.back() + 1));
  ahead.buffer.resize(ahead.rows.size() * keys);
  ahead.terms.resize(ahead.rows.size());
  std::vector<float*> out;
  for (std::size_t i = 0; i < ahead.rows.size(); ++i) out.push_back(ahead.buffer.data() + i * keys);
  block.scores->rows(query_head, ahead.rows, out, ahead.terms);
  return begin;
}

AttendedRow attend_row(const RowBlock& block, int query_head, RowIndex row, const float* mask,
                       RowScratch& scratch) {
  RowTerms terms;
  if (block.has(row)) {
    terms = block.full(query_head, row);
  } else if (const RowTerms* known = found(scratch.ahead, query_head, row)) {
    terms = *known;
  } else {
    scratch.row.resize(index(padded(block.tokens)));
    terms = block.scores->row(query_head, row, scratch.row);
  }
  if (mask == nullptr) return reading(terms, terms.sum, 1.0, terms.slack);
  const double sum = kernels::masked_sum(terms.terms, mask, padded(row + 1));
  return rescued(block, query_head, row, terms, mask, sum, scratch.rescue);
}

void attend_rows(const RowBlock& block, int query_head, std::span<const RowIndex> rows,
                 const float* mask, std::deque<RowScratch>& redone, std::span<AttendedRow> out) {
  if (rows.empty()) return;
  if (mask == nullptr) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const RowTerms& terms = block.full(query_head, rows[i]);
      out[i] = reading(terms, terms.sum, 1.0, terms.slack);
    }
    return;
  }
  std::vector<const float*> terms;
  for (const RowIndex row : rows) terms.push_back(block.full(query_head, row).terms);
  std::vector<double> sums(rows.size());
  kernels::masked_sums(terms.data(), std::ssize(terms), mask, padded(rows.back() + 1), sums.data());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<float> storage;
    out[i] = rescued(block, query_head, rows[i], block.full(query_head, rows[i]), mask, sums[i],
                     storage);
    if (!storage.empty()) redone.emplace_back().rescue = std::move(storage);
  }
}

}  // namespace kvspan
