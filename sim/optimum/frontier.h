// SPDX-License-Identifier: Apache-2.0
// optimum_footprint: the most attention that can be kept with so many entries x rows, over any
// number of heads. With a price of lambda for every row in which an entry is held, each entry
// chooses its death by itself: the maximum of gains(i) - lambda * rows. What it may choose, for any
// lambda, are the corners of the upper hull of its gains over rows held; the edges of all hulls,
// the steepest first, are the whole concave frontier, for every lambda one point. No eviction
// policy that leaves keys and values as they are lies above it.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/optimum/values.h"

namespace kvspan::optimum {

class Frontier {
 public:
  struct Point {
    double footprint = 0;  // entries x rows / those of a full cache
    double retained = 0;   // share of the attention of the rows that count
  };

  void add(const Values& head);
  // Heads of another frontier beside these.
  void add(const Frontier& other);
  //   heads, rows   how many heads were added, and rows of each count
  void finish(int heads, std::int64_t rows);

  // REQUIRES of what follows: finish(). Between two corners of the frontier a plan would have to
  // cut an entry in two; what is said there is still a bound.
  [[nodiscard]] double retained_at(double footprint) const;
  // nullopt-like: the largest footprint where even that does not reach `retained`.
  [[nodiscard]] double footprint_at(double retained) const;
  // About `most` points, evenly spread along the curve, its two ends among them.
  [[nodiscard]] std::vector<Point> points(std::size_t most) const;

 private:
  struct Edge {
    double gain = 0;  // of one row held
    double rows = 0;
  };
  std::vector<Edge> edges_;  // of all hulls
  double own_rows_ = 0, own_ = 0, full_rows_ = 0;
  std::vector<Point> curve_;  // ascending in both
};

}  // namespace kvspan::optimum
