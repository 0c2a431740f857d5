// SPDX-License-Identifier: Apache-2.0
#include "sim/base/distribution.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvspan {
namespace {

constexpr std::size_t kMostExact = std::size_t{1} << 24U;
constexpr std::size_t kBins = std::size_t{1} << 16U;

std::size_t bin_of(float value) {
  const double scaled =
      std::clamp(static_cast<double>(value), 0.0, 1.0) * static_cast<double>(kBins - 1);
  return static_cast<std::size_t>(std::llrint(scaled));
}
double value_of(std::size_t bin) {
  return static_cast<double>(bin) / static_cast<double>(kBins - 1);
}

// From 1 on. Products that mean a whole number may end a hair above it.
std::int64_t rank_of(double share, std::int64_t count) {
  const double rank = std::ceil(share * static_cast<double>(count) - 1e-9);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(rank), 1, count);
}

}  // namespace

void Distribution::add(float value) {
  if (value == common_) {
    ++common_count_;
    return;
  }
  min_ = any_ ? std::min(min_, value) : value;
  max_ = any_ ? std::max(max_, value) : value;
  any_ = true;
  if (exact()) {
    values_.push_back(value);
    if (values_.size() > kMostExact) to_histogram();
  } else {
    ++bins_[bin_of(value)];
    ++binned_;
  }
}

void Distribution::to_histogram() {
  bins_.assign(kBins, 0);
  for (const float v : values_) ++bins_[bin_of(v)];
  binned_ = static_cast<std::int64_t>(values_.size());
  values_ = {};
}

void Distribution::merge(Distribution&& other) {
  common_count_ += other.common_count_;
  if (other.any_) {
    min_ = any_ ? std::min(min_, other.min_) : other.min_;
    max_ = any_ ? std::max(max_, other.max_) : other.max_;
    any_ = true;
  }
  if (exact() && other.exact() && values_.size() + other.values_.size() <= kMostExact) {
    values_.insert(values_.end(), other.values_.begin(), other.values_.end());
    return;
  }
  if (exact()) to_histogram();
  if (other.exact()) other.to_histogram();
  for (std::size_t b = 0; b < kBins; ++b) bins_[b] += other.bins_[b];
  binned_ += other.binned_;
}

std::int64_t Distribution::count() const {
  return common_count_ + binned_ + static_cast<std::int64_t>(values_.size());
}

double nearest_rank(std::span<const double> sorted, double share) {
  return sorted[static_cast<std::size_t>(rank_of(share, std::ssize(sorted)) - 1)];
}

double Distribution::min() const {
  if (!any_) return static_cast<double>(common_);
  return static_cast<double>(common_count_ > 0 ? std::min(min_, common_) : min_);
}

double Distribution::max() const {
  if (!any_) return static_cast<double>(common_);
  return static_cast<double>(common_count_ > 0 ? std::max(max_, common_) : max_);
}

double Distribution::percentile(double share) const {
  const std::int64_t rank = rank_of(share, count());
  if (!exact()) {
    std::int64_t below = 0;
    for (std::size_t b = 0; b < kBins; ++b) {
      below += bins_[b] + (b == bin_of(common_) ? common_count_ : 0);
      if (below >= rank) return value_of(b);
    }
  }
  // Values below the common one, the common ones, values above.
  const auto middle =
      std::partition(values_.begin(), values_.end(), [&](float v) { return v < common_; });
  const std::int64_t below = middle - values_.begin();
  if (rank > below && rank <= below + common_count_) return static_cast<double>(common_);
  const auto begin = rank <= below ? values_.begin() : middle;
  const auto end = rank <= below ? middle : values_.end();
  const auto nth = begin + (rank <= below ? rank - 1 : rank - below - common_count_ - 1);
  std::nth_element(begin, nth, end);
  return static_cast<double>(*nth);
}

template <class F>
void Distribution::each(F f) const {
  for (const float value : values_) f(static_cast<double>(value), std::int64_t{1});
  for (std::size_t b = 0; b < bins_.size(); ++b) {
    if (bins_[b] > 0) f(value_of(b), bins_[b]);
  }
  if (common_count_ > 0) f(static_cast<double>(common_), common_count_);
}

double Distribution::percentile(std::span<const Part> parts, double share) {
  std::vector<std::pair<double, double>> weighted;  // value, weight
  double total = 0;
  for (const Part& part : parts) {
    part.values->each([&](double value, std::int64_t count) {
      weighted.emplace_back(value, part.weight * static_cast<double>(count));
      total += weighted.back().second;
    });
  }
  std::sort(weighted.begin(), weighted.end());
  double below = 0;
  for (const auto& [value, weight] : weighted) {
    below += weight;
    if (below >= share * total * (1 - 1e-12)) return value;
  }
  return weighted.back().first;
}

}  // namespace kvspan
