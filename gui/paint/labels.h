// SPDX-License-Identifier: Apache-2.0
// Where labels have room.
#pragma once

#include <QLineF>
#include <QPainter>
#include <QPointF>
#include <QRectF>
#include <QSizeF>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace kvspan::gui {

inline constexpr std::size_t kNoPlace = std::numeric_limits<std::size_t>::max();

// Of the candidates inside `area` that are clear of all that is taken, the one that covers least;
// the first of equals; nullopt: none.
//   covered  what else lies under a place, in any unit; kNoPlace: nothing may stand there
//   own      index in `taken` of the label's own mark, which does not count; kNoPlace: none
[[nodiscard]] std::optional<QRectF> free_place(
    std::span<const QRectF> candidates, const QRectF& area, std::span<const QRectF> taken,
    const std::function<std::size_t(const QRectF&)>& covered, std::size_t own = kNoPlace);

// Where a label of `size` may stand that belongs to a point: beside it, from `gap` pixels on, then
// further away, at the end of a line, which lead_to() draws.
[[nodiscard]] std::vector<QRectF> places_beside(const QPointF& at, const QSizeF& size, double gap);
// With the painter's pen; nothing where the label stands beside the point.
void lead_to(QPainter& painter, const QPointF& point, const QRectF& label, double gap);

// Whether a line and an area have a point in common.
[[nodiscard]] bool crosses(const QLineF& line, const QRectF& area);

}  // namespace kvspan::gui
