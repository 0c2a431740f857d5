// SPDX-License-Identifier: Apache-2.0
// Where a label of a chart may go.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

namespace kvspan {

struct Box {
  double left = 0, top = 0, right = 0, bottom = 0;
  [[nodiscard]] double width() const { return right - left; }
  [[nodiscard]] double height() const { return bottom - top; }
  [[nodiscard]] bool overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  [[nodiscard]] bool contains(const Box& other) const {
    return left <= other.left && other.right <= right && top <= other.top && other.bottom <= bottom;
  }
};

[[nodiscard]] inline bool meets(std::span<const Box> boxes, const Box& box) {
  return std::any_of(boxes.begin(), boxes.end(), [&](const Box& b) { return b.overlaps(box); });
}

// Which of `places` is cheapest, inside `area` and on nothing that is taken, the first of equals.
//   cost(i): of places[i], std::optional<double>; nothing: the label may not go there
template <class Cost>
[[nodiscard]] std::optional<std::size_t> cheapest_place(const Box& area,
                                                        std::span<const Box> places,
                                                        std::span<const Box> taken,
                                                        const Cost& cost) {
  std::optional<std::size_t> best;
  double least = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (!area.contains(places[i]) || meets(taken, places[i])) continue;
    const std::optional<double> here = cost(i);
    if (!here || (best && *here >= least)) continue;
    best = i;
    least = *here;
    if (least <= 0) break;  // nothing is cheaper
  }
  return best;
}

}  // namespace kvspan
