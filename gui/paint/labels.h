// SPDX-License-Identifier: Apache-2.0
// Where labels have room.
#pragma once

#include <QLineF>
#include <QRectF>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>

namespace kvspan::gui {

inline constexpr std::size_t kNoPlace = std::numeric_limits<std::size_t>::max();

// Of the candidates inside `area` that are clear of all that is taken, the one that covers least;
// the first of equals; nullopt: none.
//   covered  what else lies under a place, in any unit; kNoPlace: nothing may stand there
//   own      index in `taken` of the label's own mark, which does not count; kNoPlace: none
[[nodiscard]] std::optional<QRectF> free_place(
    std::span<const QRectF> candidates, const QRectF& area, std::span<const QRectF> taken,
    const std::function<std::size_t(const QRectF&)>& covered, std::size_t own = kNoPlace);

// Whether a line and an area have a point in common.
[[nodiscard]] bool crosses(const QLineF& line, const QRectF& area);

}  // namespace kvspan::gui
