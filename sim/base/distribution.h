// SPDX-License-Identifier: Apache-2.0
// Mean, minimum, maximum and nearest-rank percentiles of many values in bounded memory: exact up to
// 2^24 values that differ from `common` (a value that is counted, not stored: 1 for retained mass,
// 0 for output error); beyond that a histogram of 2^16 bins over [0, 1].
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvspan {

// The ceil(share * count)-th of ascending values. REQUIRES: there are some.
[[nodiscard]] double nearest_rank(std::span<const double> sorted, double share);

class Distribution {
 public:
  explicit Distribution(float common) : common_(common) {}
  void add(float value);
  void add_common(std::int64_t count) { common_count_ += count; }
  void merge(Distribution&& other);  // order does not matter

  [[nodiscard]] std::int64_t count() const;
  [[nodiscard]] bool exact() const { return bins_.empty(); }
  [[nodiscard]] double min() const;
  [[nodiscard]] double max() const;
  // The ceil(share * count)-th smallest value. REQUIRES: count() > 0.
  [[nodiscard]] double percentile(double share) const;

  // Of several distributions together, whose values count `weight` times each: the smallest value
  // that has `share` of the weight at or below it. REQUIRES: one is not empty.
  struct Part {
    const Distribution* values;
    double weight;
  };
  [[nodiscard]] static double percentile(std::span<const Part> parts, double share);

 private:
  // Calls f(value, how many), in any order.
  template <class F>
  void each(F f) const;
  void to_histogram();
  float common_;
  std::int64_t common_count_ = 0;
  std::int64_t binned_ = 0;
  float min_ = 0, max_ = 0;
  bool any_ = false;
  mutable std::vector<float> values_;
  std::vector<std::int64_t> bins_;
};

}  // namespace kvspan
