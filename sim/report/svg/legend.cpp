// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg/legend.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include <fmt/format.h>

#include "sim/base/text.h"

namespace kvspan::svg {
namespace {

constexpr double kLine = 18;
constexpr double kSize = 11;

// A value, or what a score trace leaves open.
std::string retained_text(const Series& s) {
  if (!s.retained) return "-";
  const std::string least = fmt::format("{:.2f}", 100 * *s.retained);
  const std::string most = fmt::format("{:.2f}", 100 * s.retained_most.value_or(*s.retained));
  return most == least ? least : fmt::format("{}\u2013{}", least, most);
}

// One run in the columns [begin, end), on the line of text at y.
void draw_line(Canvas& canvas, const Series& s, double begin, double end, double y,
               double text_left, bool numbered) {
  const bool bound = s.run->bound;
  canvas.line(begin, y - 4, begin + 34, y - 4, s.colour, 2,
              bound && s.dash.empty() ? "3 3" : s.dash);
  canvas.dot(begin + 17, y - 4, 3.5, bound ? kPaper : s.colour, bound ? s.colour : kPaper,
             bound ? 1.6 : 0.8);
  if (numbered) canvas.text(begin + 58, y, "end", kSize, kFaint, s.number);
  canvas.text(begin + text_left, y, "start", kSize, kInk,
              fitted(s.label + (bound ? " (bound)" : ""), kSize, end - begin - text_left - 230));
  canvas.text(end - 156, y, "end", kSize, kInk, human_bytes(s.run->metrics.peak_bytes.total));
  canvas.text(end - 82, y, "end", kSize, kInk,
              fmt::format("{:.1f}", 100 * s.run->metrics.footprint));
  canvas.text(end, y, "end", kSize, kInk, retained_text(s));
}

}  // namespace

double draw_legend(Canvas& canvas, const std::vector<Series>& series, double left, double right,
                   double top) {
  constexpr double kColumnGap = 36;
  const std::size_t columns = series.size() > 6 ? 2 : 1;
  const std::size_t lines = (series.size() + columns - 1) / columns;
  const double width = (right - left - kColumnGap) / 2;
  const bool numbered = series.size() > kDirectLabels;
  const double text_left = numbered ? 64 : 44;
  for (std::size_t c = 0; c < columns; ++c) {
    const double begin = left + static_cast<double>(c) * (width + kColumnGap);
    const double end = begin + width;
    canvas.text(begin + text_left, top, "start", kSize, kFaint, "policy");
    canvas.text(end - 156, top, "end", kSize, kFaint, "peak memory");
    canvas.text(end - 82, top, "end", kSize, kFaint, "footprint %");
    canvas.text(end, top, "end", kSize, kFaint, "retained %");
    canvas.line(begin, top + 6, end, top + 6, kGrid, 1);
    for (std::size_t i = c * lines; i < std::min(series.size(), (c + 1) * lines); ++i) {
      const double y = top + 6 + kLine * static_cast<double>(i - c * lines + 1);
      draw_line(canvas, series[i], begin, end, y, text_left, numbered);
    }
  }
  return top + 6 + kLine * static_cast<double>(lines);
}

}  // namespace kvspan::svg
