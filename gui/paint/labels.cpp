// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/labels.h"

#include <cmath>

#include "sim/report/placement.h"

namespace kvspan::gui {
namespace {

constexpr double kFar = 26;  // pixels from a point to its label, where there is no room beside it

Box box_of(const QRectF& rect) { return {rect.left(), rect.top(), rect.right(), rect.bottom()}; }

}  // namespace

std::optional<QRectF> free_place(std::span<const QRectF> candidates, const QRectF& area,
                                 std::span<const QRectF> taken,
                                 const std::function<std::size_t(const QRectF&)>& covered,
                                 std::size_t own) {
  std::vector<Box> places;
  for (const QRectF& candidate : candidates) places.push_back(box_of(candidate));
  std::vector<Box> others;
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (i != own) others.push_back(box_of(taken[i]));
  }
  const auto cost = [&](std::size_t i) -> std::optional<double> {
    const std::size_t under = covered(candidates[i]);
    if (under == kNoPlace) return std::nullopt;
    return static_cast<double>(under);
  };
  const std::optional<std::size_t> best = cheapest_place(box_of(area), places, others, cost);
  if (!best) return std::nullopt;
  return candidates[*best];
}

std::vector<QRectF> places_beside(const QPointF& at, const QSizeF& size, double gap) {
  const double wide = size.width();
  const double high = size.height();
  std::vector<QRectF> places{{{at.x() + gap, at.y() - high / 2}, size},
                             {{at.x() - gap - wide, at.y() - high / 2}, size},
                             {{at.x() - wide / 2, at.y() - gap - high}, size},
                             {{at.x() - wide / 2, at.y() + gap}, size}};
  for (const double side : {-1.0, 1.0}) {
    for (const int lines : {-1, 1, -2, 2, -3, 3}) {
      places.emplace_back(
          QPointF(side < 0 ? at.x() - kFar - wide : at.x() + kFar, at.y() + (lines - 0.5) * high),
          size);
    }
  }
  return places;
}

void lead_to(QPainter& painter, const QPointF& point, const QRectF& label, double gap) {
  if (std::abs(label.center().x() - point.x()) <= label.width() / 2 + gap + 1) return;
  const bool left = label.right() < point.x();
  painter.drawLine(point, QPointF(left ? label.right() + 2 : label.left() - 2, label.center().y()));
}

bool crosses(const QLineF& line, const QRectF& area) {
  if (area.contains(line.p1()) || area.contains(line.p2())) return true;
  const QPointF corners[] = {area.topLeft(), area.topRight(), area.bottomRight(), area.bottomLeft(),
                             area.topLeft()};
  for (int i = 0; i < 4; ++i) {
    if (line.intersects(QLineF(corners[i], corners[i + 1]), nullptr) ==
        QLineF::BoundedIntersection) {
      return true;
    }
  }
  return false;
}

}  // namespace kvspan::gui
