// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/labels.h"

namespace kvspan::gui {

std::optional<QRectF> free_place(std::span<const QRectF> candidates, const QRectF& area,
                                 std::span<const QRectF> taken,
                                 const std::function<std::size_t(const QRectF&)>& covered,
                                 std::size_t own) {
  std::optional<QRectF> best;
  std::size_t least = kNoPlace;
  for (const QRectF& box : candidates) {
    bool free = area.contains(box);
    for (std::size_t i = 0; i < taken.size() && free; ++i) {
      free = i == own || !taken[i].intersects(box);
    }
    if (!free) continue;
    const std::size_t under = covered(box);
    if (under >= least) continue;
    least = under;
    best = box;
    if (least == 0) break;
  }
  return best;
}

}  // namespace kvspan::gui
