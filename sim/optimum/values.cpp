// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/values.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"

namespace kvspan::optimum {
namespace {

constexpr RowIndex kBlockRows = 16;

// The attention of one head, row after row, summed by token.
class Receiver {
 public:
  Receiver(const Trace& trace, const StoredHead& stored)
      : trace_(trace),
        layer_(stored.layer),
        group_(trace.meta().query_heads / trace.meta().kv_heads),
        served_(trace.meta().query_heads / stored.heads),
        kv_head_(stored.head * served_ / group_),
        first_(stored.head * served_ % group_),
        keys_(index(kernels::padded(trace.meta().tokens))),
        scores_(LayerScores::of_kv_head(trace, stored.layer, kv_head_)),
        buffer_(index(group_ * kBlockRows) * keys_) {}

  // Adds the rows of [begin, end) that count to `sums` [tokens].
  void add(RowIndex begin, RowIndex end, std::span<const char> counts, std::vector<double>& sums) {
    for (RowIndex row = begin; row < end; row += kBlockRows) {
      const RowIndex last = std::min(row + kBlockRows, end);
      const auto counted = counts.subspan(index(row), index(last - row));
      if (std::none_of(counted.begin(), counted.end(), [](char c) { return c != 0; })) continue;
      add_block(row, last, counted, sums);
    }
  }

 private:
  void add_block(RowIndex begin, RowIndex end, std::span<const char> counted,
                 std::vector<double>& sums) {
    const auto rows = index(end - begin);
    std::vector<float*> out;
    std::vector<RowTerms> info(index(group_) * rows);
    for (std::size_t i = 0; i < info.size(); ++i) out.push_back(buffer_.data() + i * keys_);
    std::vector<RowIndex> block(rows);
    std::iota(block.begin(), block.end(), begin);
    scores_.compute(kv_head_, {block, kernels::padded(end)}, out, info);
    for (std::size_t r = 0; r < rows; ++r) {
      if (counted[r] == 0) continue;
      const RowIndex row = begin + static_cast<RowIndex>(r);
      for (int g = first_; g < first_ + served_; ++g) add_row(row, info[index(g) * rows + r], sums);
    }
  }

  void add_row(RowIndex row, const RowTerms& terms, std::vector<double>& sums) const {
    if (!scores_.has_row(row) || terms.cut.total > 0) {
      throw TraceError(fmt::format(
          "{}: the optimum needs every probability of every row that counts, and layer {} of this "
          "score trace {} row {}; a qkv trace has them all",
          trace_.name(), layer_, scores_.has_row(row) ? "holds only the largest of" : "lacks",
          row));
    }
    if (!(terms.sum > 0)) return;
    const double scale = 1 / (terms.sum * served_);
    for (std::size_t t = 0; t <= index(row); ++t)
      sums[t] += static_cast<double>(terms.terms[t]) * scale;
  }

  const Trace& trace_;
  int layer_;
  int group_;    // query heads of a KV head
  int served_;   // query heads of the stored head
  int kv_head_;  // that the stored head belongs to
  int first_;    // of its group: the first that the stored head serves
  std::size_t keys_;
  LayerScores scores_;
  std::vector<float> buffer_;  // [group][block rows][keys]
};

}  // namespace

Values::Values(std::vector<RowIndex> ends, std::vector<RowIndex> births)
    : ends_(std::move(ends)), births_(std::move(births)) {
  assert(std::is_sorted(ends_.begin(), ends_.end()));
  std::size_t size = 0;
  for (const RowIndex birth : births_) {
    const auto pass = std::upper_bound(ends_.begin(), ends_.end(), birth) - ends_.begin();
    assert(index(pass) < ends_.size());
    born_.push_back(static_cast<std::int32_t>(pass));
    offsets_.push_back(size);
    size += ends_.size() - index(pass);
  }
  gains_.assign(size, 0);
}

void Values::pool(const Values& other) {
  assert(ends_ == other.ends_);
  for (const std::size_t offset : other.offsets_) offsets_.push_back(gains_.size() + offset);
  births_.insert(births_.end(), other.births_.begin(), other.births_.end());
  born_.insert(born_.end(), other.born_.begin(), other.born_.end());
  gains_.insert(gains_.end(), other.gains_.begin(), other.gains_.end());
  own_ += other.own_;
}

Values values_of_head(const Trace& trace, const StoredHead& stored,
                      const std::vector<RowIndex>& ends, std::span<const char> counts) {
  const RowIndex tokens = trace.meta().tokens;
  assert(!ends.empty() && ends.back() == tokens && counts.size() == index(tokens));
  std::vector<RowIndex> births;
  for (RowIndex t = 0; t < tokens; ++t) births.push_back(t);
  Values values(ends, std::move(births));
  Receiver receiver(trace, stored);
  std::vector<double> received(index(tokens), 0.0);
  std::vector<Mass> own(index(tokens), 0);
  RowIndex begin = 0;
  for (int pass = 0; pass < values.passes(); ++pass) {
    const RowIndex end = ends[index(pass)];
    receiver.add(begin, end, counts, received);
    for (int entry = 0; entry < end; ++entry) {
      const Mass sum = std::llround(received[index(entry)] * kUnitsOfOne);
      if (values.born(entry) == pass) own[index(entry)] = sum;
      values.gains(entry)[index(pass - values.born(entry))] = sum - own[index(entry)];
    }
    begin = end;
  }
  for (const Mass mass : own) values.add_own(mass);
  return values;
}

Capacities constant_capacities(const Values& values, std::int64_t budget) {
  return Capacities(index(values.passes() - 1), budget);
}

Capacities occupancy(const Values& values, std::span<const std::uint32_t> deaths) {
  Capacities counts(index(values.passes() - 1), 0);
  for (int entry = 0; entry < values.entries(); ++entry) {
    for (int k = values.born(entry); k + 1 < values.passes(); ++k) {
      if (static_cast<RowIndex>(deaths[index(entry)]) <= values.ends()[index(k)]) break;
      ++counts[index(k)];
    }
  }
  return counts;
}

Mass gain_of(const Values& values, const Plan& plan) {
  Mass sum = 0;
  for (int entry = 0; entry < values.entries(); ++entry)
    sum += values.gains(entry)[index(plan[index(entry)] - values.born(entry))];
  return sum;
}

std::int64_t rows_held(const Values& values, const Plan& plan) {
  std::int64_t sum = 0;
  for (int entry = 0; entry < values.entries(); ++entry)
    sum += values.rows_held(entry, plan[index(entry)]);
  return sum;
}

Capacities held(const Values& values, const Plan& plan) {
  Capacities counts(index(values.passes() - 1), 0);
  for (int entry = 0; entry < values.entries(); ++entry) {
    for (int k = values.born(entry); k < plan[index(entry)]; ++k) ++counts[index(k)];
  }
  return counts;
}

}  // namespace kvspan::optimum
