// SPDX-License-Identifier: Apache-2.0
#include "sim/learn/rank_measures.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace kvspan {
namespace {

std::int64_t merge_count(std::vector<double>& values, std::vector<double>& scratch,
                         std::size_t begin, std::size_t end) {
  if (end - begin < 2) return 0;
  const std::size_t middle = begin + (end - begin) / 2;
  std::int64_t swaps =
      merge_count(values, scratch, begin, middle) + merge_count(values, scratch, middle, end);
  std::size_t a = begin;
  std::size_t b = middle;
  for (std::size_t i = begin; i < end; ++i) {
    if (a < middle && (b == end || values[a] <= values[b])) {
      scratch[i] = values[a++];
    } else {
      swaps += static_cast<std::int64_t>(middle - a);
      scratch[i] = values[b++];
    }
  }
  std::copy(scratch.begin() + static_cast<std::ptrdiff_t>(begin),
            scratch.begin() + static_cast<std::ptrdiff_t>(end),
            values.begin() + static_cast<std::ptrdiff_t>(begin));
  return swaps;
}

// Pairs of equal neighbours in a sorted range.
template <class Equal>
std::int64_t tied_pairs(std::size_t n, const Equal& equal) {
  std::int64_t out = 0;
  std::int64_t run = 1;
  for (std::size_t i = 1; i <= n; ++i) {
    if (i < n && equal(i - 1, i)) {
      ++run;
    } else {
      out += run * (run - 1) / 2;
      run = 1;
    }
  }
  return out;
}

}  // namespace

double area_under_curve(std::span<const double> scores, std::span<const double> labels) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
  double positives = 0;
  double rank_sum = 0;
  for (std::size_t i = 0; i < order.size();) {
    std::size_t j = i;
    while (j < order.size() && scores[order[j]] == scores[order[i]]) ++j;
    const double rank = 0.5 * static_cast<double>(i + j + 1);  // mean rank of a tie, from 1
    for (; i < j; ++i) {
      if (labels[order[i]] <= 0.5) continue;
      positives += 1;
      rank_sum += rank;
    }
  }
  const double negatives = static_cast<double>(scores.size()) - positives;
  if (positives == 0 || negatives == 0) return 0.5;
  return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives);
}

double kendall_tau(std::span<const double> a, std::span<const double> b) {
  const std::size_t n = a.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t i, std::size_t j) { return a[i] != a[j] ? a[i] < a[j] : b[i] < b[j]; });
  const auto same_a = [&](std::size_t i, std::size_t j) { return a[order[i]] == a[order[j]]; };
  const std::int64_t ties_a = tied_pairs(n, same_a);
  const std::int64_t ties_both = tied_pairs(
      n, [&](std::size_t i, std::size_t j) { return same_a(i, j) && b[order[i]] == b[order[j]]; });
  std::vector<double> sorted(n);
  for (std::size_t i = 0; i < n; ++i) sorted[i] = b[order[i]];
  std::vector<double> scratch(n);
  const std::int64_t swaps = merge_count(sorted, scratch, 0, n);
  const std::int64_t ties_b =
      tied_pairs(n, [&](std::size_t i, std::size_t j) { return sorted[i] == sorted[j]; });
  const auto count = static_cast<std::int64_t>(n);
  const std::int64_t pairs = count * (count - 1) / 2;
  const double denominator = std::sqrt(static_cast<double>(pairs - ties_a)) *
                             std::sqrt(static_cast<double>(pairs - ties_b));
  if (!(denominator > 0)) return 0;
  return static_cast<double>(pairs - ties_a - ties_b + ties_both - 2 * swaps) / denominator;
}

}  // namespace kvspan
