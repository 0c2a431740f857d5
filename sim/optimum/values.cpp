// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/values.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "sim/optimum/head_rows.h"

namespace kvspan::optimum {

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

Values values_of_rows(const std::vector<RowIndex>& ends, const AddRows& add) {
  const RowIndex tokens = ends.back();
  std::vector<RowIndex> births;
  for (RowIndex t = 0; t < tokens; ++t) births.push_back(t);
  Values values(ends, std::move(births));
  std::vector<double> received(index(tokens), 0.0);
  std::vector<Mass> own(index(tokens), 0);
  RowIndex begin = 0;
  for (int pass = 0; pass < values.passes(); ++pass) {
    const RowIndex end = ends[index(pass)];
    add(begin, end, received);
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

Values values_of_head(const Trace& trace, const StoredHead& stored,
                      const std::vector<RowIndex>& ends, std::span<const char> counts) {
  assert(!ends.empty() && ends.back() == trace.meta().tokens &&
         counts.size() == index(ends.back()));
  HeadRows rows(trace, stored);
  return values_of_rows(ends, [&](RowIndex begin, RowIndex end, std::vector<double>& sums) {
    rows.for_each(begin, end, counts, [&](const HeadRows::Row& row) {
      const double scale = 1 / (row.sum * rows.query_heads());
      for (std::size_t t = 0; t <= index(row.row); ++t)
        sums[t] += static_cast<double>(row.terms[t]) * scale;
    });
  });
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

std::vector<RowIndex> deaths_of(const Values& values, const Plan& plan) {
  std::vector<RowIndex> deaths;
  for (const std::int32_t pass : plan) deaths.push_back(values.ends()[index(pass)]);
  return deaths;
}

Capacities held(const Values& values, const Plan& plan) {
  Capacities counts(index(values.passes() - 1), 0);
  for (int entry = 0; entry < values.entries(); ++entry) {
    for (int k = values.born(entry); k < plan[index(entry)]; ++k) ++counts[index(k)];
  }
  return counts;
}

}  // namespace kvspan::optimum
