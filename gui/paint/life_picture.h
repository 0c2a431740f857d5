// SPDX-License-Identifier: Apache-2.0
// The map of one head's entries as a picture: tokens to the right, rows downwards.
#pragma once

#include <QColor>
#include <QImage>
#include <cstddef>
#include <functional>
#include <memory>

#include "gui/model/lives.h"
#include "gui/model/result.h"
#include "sim/attention/head_attention.h"

namespace kvspan::gui {

using Attention = std::shared_ptr<const HeadAttention>;  // null: not shown

struct LifeColours {
  QColor unborn, read, held, evicted;    // without attention
  QColor faint_held, strong_held, lost;  // with it; nothing lost is `evicted`
};
[[nodiscard]] LifeColours life_colours();

// WhichHead head of which run.
struct WhichHead {
  ResultPtr result;
  std::size_t run = 0;
  int layer = 0, head = 0;
  bool operator==(const WhichHead&) const = default;
};

struct LifePicture {
  WhichHead of;
  LifeFrame frame;
  QImage image;
};

// Errors: TraceError of a damaged file; Interrupted.
[[nodiscard]] LifePicture make_life_picture(const WhichHead& of, const LifeFrame& frame,
                                            const Attention& attention, const LifeColours& colours,
                                            const std::function<bool()>& cancelled);

}  // namespace kvspan::gui
