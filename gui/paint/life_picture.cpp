// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/life_picture.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "gui/paint/theme.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {

namespace {

constexpr double kFaintest = 3.5;  // decades below 1 that attention is shown in

// 0 to 1 for a probability.
double strength(double probability) {
  return probability > 0 ? std::clamp(1 + std::log10(probability) / kFaintest, 0.0, 1.0) : 0.0;
}

// The largest attention of the cells of `attention` that a cell of the picture covers.
class AttentionCells {
 public:
  AttentionCells(const HeadAttention& attention, const LifeFrame& frame, RowIndex tokens)
      : attention_(&attention),
        columns_(places(frame.tokens, frame.width, tokens)),
        rows_(places(frame.rows, frame.height, tokens)) {}

  [[nodiscard]] double at(int x, int y) const {
    const auto [left, right] = columns_[static_cast<std::size_t>(x)];
    const auto [top, bottom] = rows_[static_cast<std::size_t>(y)];
    float most = 0;
    for (std::int64_t row = top; row < bottom; ++row) {
      for (std::int64_t column = left; column < right; ++column) {
        const float p = attention_->map[static_cast<std::size_t>(row * attention_->grid + column)];
        if (p > most) most = p;  // not for NaN
      }
    }
    return static_cast<double>(most);
  }

 private:
  using Range = std::pair<std::int64_t, std::int64_t>;
  [[nodiscard]] std::vector<Range> places(Rows shown, int cells, RowIndex tokens) const {
    std::vector<Range> out;
    for (std::int64_t i = 0; i < cells; ++i) {
      const RowIndex begin = shown.begin + i * shown.size() / cells;
      const RowIndex end = std::max(begin + 1, shown.begin + (i + 1) * shown.size() / cells);
      out.emplace_back(begin * attention_->grid / tokens,
                       (end - 1) * attention_->grid / tokens + 1);
    }
    return out;
  }
  const HeadAttention* attention_;
  std::vector<Range> columns_, rows_;
};

}  // namespace

LifeColours life_colours() {
  const Theme& t = theme();
  LifeColours c;
  c.unborn = t.paper;
  c.read = held_colour();
  c.held = mix(c.read, t.paper, 0.64);
  c.evicted = mix(t.unresident, t.ink, 0.06);
  c.faint_held = mix(c.read, t.paper, t.dark ? 0.72 : 0.78);
  c.strong_held = t.dark ? QColor("#e4f2fc") : QColor("#08213a");
  c.lost = t.bad;
  return c;
}

LifePicture make_life_picture(const WhichHead& of, const LifeFrame& frame,
                              const Attention& attention, const LifeColours& colours,
                              const std::function<bool()>& cancelled) {
  const LifetimesFile& file = *of.result->lifetimes;
  const LifeMap map =
      map_lives(file, static_cast<int>(of.run), of.layer, of.head, frame, cancelled);
  std::optional<AttentionCells> cells;
  if (attention) cells.emplace(*attention, frame, file.tokens());
  LifePicture picture{of, frame, QImage(frame.width, frame.height, QImage::Format_RGB32)};
  for (int y = 0; y < frame.height; ++y) {
    if (cancelled && cancelled()) throw Interrupted();
    auto* line = reinterpret_cast<QRgb*>(picture.image.scanLine(y));
    for (int x = 0; x < frame.width; ++x) {
      const std::size_t i = static_cast<std::size_t>(y) * static_cast<std::size_t>(frame.width) +
                            static_cast<std::size_t>(x);
      const auto born = static_cast<double>(map.born[i]);
      const auto held = static_cast<double>(map.held[i]);
      const double read = map.read.empty() ? held : static_cast<double>(map.read[i]);
      if (born == 0) {
        line[x] = colours.unborn.rgb();
        continue;
      }
      const double a = cells ? strength(cells->at(x, y)) : 0;
      const QColor there = cells ? mix(colours.faint_held, colours.strong_held, a)
                                 : mix(colours.held, colours.read, held > 0 ? read / held : 0);
      const QColor gone = mix(colours.evicted, colours.lost, a);
      line[x] = mix(colours.unborn, mix(gone, there, held / born), born).rgb();
    }
  }
  return picture;
}

}  // namespace kvspan::gui
