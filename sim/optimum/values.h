// SPDX-License-Identifier: Apache-2.0
// What keeping is worth: the attention that every entry of a head receives, pass by pass, and what
// an eviction plan is: the pass at whose end each entry dies. Everything else in this room is about
// the best plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/attention/head_attention.h"
#include "sim/base/types.h"
#include "sim/trace/trace.h"

namespace kvspan::optimum {

// Attention probability summed over rows, in units of 2^-32: sums of it are exact, so that "the
// best" means something. Rounding takes at most half a unit from an entry.
using Mass = std::int64_t;
inline constexpr double kUnitsOfOne = 4294967296.0;
[[nodiscard]] inline double to_share(Mass mass) { return static_cast<double>(mass) / kUnitsOfOne; }

// Entries and what they gain. An entry always attends the pass that bears it, outside any budget
// (nothing dies inside a pass): that part is own(), whatever the plan.
class Values {
 public:
  Values() = default;
  // Without gains.
  //   ends    [K] rows at which passes end, ascending
  //   births  [E] row of each entry, ascending, each below ends.back()
  Values(std::vector<RowIndex> ends, std::vector<RowIndex> births);

  [[nodiscard]] int passes() const { return static_cast<int>(ends_.size()); }
  [[nodiscard]] int entries() const { return static_cast<int>(births_.size()); }
  [[nodiscard]] const std::vector<RowIndex>& ends() const { return ends_; }
  // The pass that bears an entry.
  [[nodiscard]] int born(int entry) const { return born_[index(entry)]; }
  // [K - born] received in the passes after its own, up to and with pass born + j; [0] is 0.
  [[nodiscard]] std::span<const Mass> gains(int entry) const {
    return std::span(gains_).subspan(offsets_[index(entry)], width(entry));
  }
  [[nodiscard]] std::span<Mass> gains(int entry) {
    return std::span(gains_).subspan(offsets_[index(entry)], width(entry));
  }
  // Rows in which an entry is held that dies at the end of `pass`.
  [[nodiscard]] RowIndex rows_held(int entry, int pass) const {
    return ends_[index(pass)] - births_[index(entry)];
  }
  // Received by all entries in the passes that bear them.
  [[nodiscard]] Mass own() const { return own_; }
  void add_own(Mass mass) { own_ += mass; }

  // The entries of another head beside these: a budget that heads share. REQUIRES: the same passes.
  void pool(const Values& other);

 private:
  [[nodiscard]] std::size_t width(int entry) const { return ends_.size() - index(born(entry)); }
  std::vector<RowIndex> ends_, births_;
  std::vector<std::int32_t> born_;
  std::vector<std::size_t> offsets_;
  std::vector<Mass> gains_;
  Mass own_ = 0;
};

// The values of entries 0, 1, ..., one a row, from what they receive.
//   add   adds what the rows of a pass [begin, end) give to each entry to `sums` [tokens]
using AddRows = std::function<void(RowIndex begin, RowIndex end, std::vector<double>& sums)>;
[[nodiscard]] Values values_of_rows(const std::vector<RowIndex>& ends, const AddRows& add);

// Of a stored head, mean over the query heads that it serves, of the full cache's probabilities (a
// sink logit left out, as in retained mass).
//   ends    [K] of the passes; the last is the trace's tokens
//   counts  [tokens] rows whose attention counts
// Memory: 8 bytes for each entry and later pass, at most 4 tokens^2 (2K: 16 MiB, 8K: 256 MiB).
// Errors: TraceError where a score trace does not hold all of a row that counts.
[[nodiscard]] Values values_of_head(const Trace& trace, const StoredHead& stored,
                                    const std::vector<RowIndex>& ends,
                                    std::span<const char> counts);

// ---- Plans --------------------------------------------------------------------------------------

// How many entries may stay after each pass but the last, those that it bore included. [K - 1]
using Capacities = std::vector<std::int64_t>;
// The same after every pass.
[[nodiscard]] Capacities constant_capacities(const Values& values, std::int64_t budget);
// What a ledger's head held. `deaths` [tokens] rows.
[[nodiscard]] Capacities occupancy(const Values& values, std::span<const std::uint32_t> deaths);

// [E] the pass at whose end each entry dies: born(i) at the earliest, K - 1: never.
using Plan = std::vector<std::int32_t>;

[[nodiscard]] Mass gain_of(const Values& values, const Plan& plan);
[[nodiscard]] std::int64_t rows_held(const Values& values, const Plan& plan);
// The row at which each entry dies. [E]
[[nodiscard]] std::vector<RowIndex> deaths_of(const Values& values, const Plan& plan);
// Entries held after each pass but the last. [K - 1]
[[nodiscard]] Capacities held(const Values& values, const Plan& plan);

}  // namespace kvspan::optimum
