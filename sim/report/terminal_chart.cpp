// SPDX-License-Identifier: Apache-2.0
#include "sim/report/terminal_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "sim/report/axes.h"
#include "sim/report/listing.h"

namespace kvspan {

namespace {

constexpr std::size_t kMarks = 6;
constexpr int kLabelWidth = 9;  // "1023 MiB" and a space

struct Glyphs {
  std::array<std::string_view, kMarks> marks;
  std::string_view axis, tick, corner, line, boundary, boundary_foot;
};
constexpr Glyphs kUnicode{{"\u25CF", "\u25B2", "\u25A0", "\u25CB", "\u25B3", "\u25A1"},
                          "\u2502",
                          "\u2524",
                          "\u2514",
                          "\u2500",
                          "\u250A",
                          "\u2534"};
constexpr Glyphs kAscii{{"*", "o", "+", "x", "#", "%"}, "|", "+", "+", "-", ":", "+"};

// One curve: the largest value of each column, and the line of characters that it falls on.
struct Curve {
  std::vector<std::size_t> runs;
  std::vector<std::int64_t> values;
  std::vector<int> levels;
};

std::vector<std::int64_t> column_maxima(const std::vector<std::int64_t>& series,
                                        const RowAxis& axis) {
  std::vector<std::int64_t> maxima;
  for (int column = 0; column < axis.prefill_columns + axis.decode_columns; ++column) {
    const auto [begin, end] = axis.rows(column);
    maxima.push_back(*std::max_element(series.begin() + begin, series.begin() + end));
  }
  return maxima;
}

// A scale on which ticks fall on lines of characters: a tick every `lines` lines, worth `step`
// bytes.
struct Scale {
  double step = 1;
  int lines = 1;
};

Scale make_scale(double top, int levels) {
  const ByteUnit unit = byte_unit(top);
  Scale best;
  double least = 0;
  for (int lines = 2; lines <= 5 && lines < levels; ++lines) {
    const double needed = top / unit.bytes * lines / (levels - 1);  // worth of a tick
    const double power = std::pow(10.0, std::floor(std::log10(needed)));
    for (const double factor : {1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0}) {
      const double step = factor * power;
      // Bytes are whole, and a fraction of one would be a strange label.
      if (step < needed * (1 - 1e-9) || (unit.bytes == 1 && step < 1)) continue;
      // Empty lines at the top are waste; so is a tick on every other line.
      const double waste = step / needed + (lines == 2 ? 0.3 : 0);
      if (least == 0 || waste < least) {
        least = waste;
        best = {step * unit.bytes, lines};
      }
      break;
    }
  }
  return best;
}

// `most` of many: the first, and others at even distances in byte-rows. REQUIRES: most >= 2.
std::vector<Curve> choose(const RunReport& report, std::vector<Curve> curves, std::size_t most) {
  if (curves.size() <= most) return curves;
  const auto held = [&](std::size_t i) {
    return report.runs[curves[i].runs.front()].metrics.byte_rows;
  };
  std::vector<std::size_t> rest(curves.size() - 1);
  std::iota(rest.begin(), rest.end(), std::size_t{1});
  std::stable_sort(rest.begin(), rest.end(), [&](auto a, auto b) { return held(a) < held(b); });
  std::vector<std::size_t> chosen{0};
  for (std::size_t i = 0; i + 1 < most; ++i) {
    chosen.push_back(rest[i * (rest.size() - 1) / std::max<std::size_t>(1, most - 2)]);
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<Curve> result;
  for (const std::size_t i : chosen) result.push_back(std::move(curves[i]));
  return result;
}

std::vector<std::string> legend(const RunReport& report, const std::vector<Curve>& curves,
                                const Glyphs& glyphs, int width, int most) {
  std::vector<std::string> texts;
  for (const Curve& curve : curves) {
    std::string text;
    for (const std::size_t run : curve.runs) {
      text += (text.empty() ? "" : ", ") + label_of(report.runs[run]);
    }
    texts.push_back(text);
  }
  // The longest labels give way until the entries fit into the lines.
  std::vector<std::string> lines;
  for (int room = width - 4; room >= 8; room -= 2) {
    lines.assign(1, "");
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::string entry =
          fmt::format("  {} {}", glyphs.marks[i], shorten_middle(texts[i], room));
      if (display_width(lines.back()) + display_width(entry) > width) lines.emplace_back();
      lines.back() += entry;
    }
    if (static_cast<int>(lines.size()) <= most) break;
  }
  return lines;
}

// Puts `text` on a line of characters at `column`, unless it would touch what is there already.
void put(std::string& line, int column, const std::string& text, int width) {
  const int at = std::clamp(column, 0, std::max(0, width - static_cast<int>(text.size())));
  const auto begin = static_cast<std::size_t>(at);
  line.resize(std::max(line.size(), begin + text.size() + 1), ' ');
  const std::size_t left = begin > 0 ? begin - 1 : 0;
  if (line.find_first_not_of(' ', left) < begin + text.size() + 1) return;
  line.replace(begin, text.size(), text);
}

std::string axis_lines(const RowAxis& axis, const Glyphs& glyphs, int columns) {
  std::string line(kLabelWidth, ' ');
  line += glyphs.corner;
  for (int c = 0; c < columns; ++c) {
    line += c == axis.prefill_columns ? glyphs.boundary_foot : glyphs.line;
  }
  std::string rows;
  const std::string last = fmt::format("{}", axis.tokens);
  put(rows, 0, "row 0", columns);
  put(rows, columns - static_cast<int>(last.size()), last, columns);
  if (axis.decode_columns > 0) {
    const std::string end = fmt::format("{}", axis.prompt);
    put(rows, axis.prefill_columns - static_cast<int>(end.size() / 2), end, columns);
    // The longest text that touches no number.
    for (const std::string& text :
         {"decode" + axis.wider(), "decode x" + axis.stretch_text(), std::string("decode")}) {
      const int length = static_cast<int>(text.size());
      put(rows, axis.prefill_columns + (axis.decode_columns + 1 - length) / 2, text, columns);
      if (rows.find("decode") != rows.npos) break;
    }
  }
  put(rows, (axis.prefill_columns - 7) / 2, "prefill", columns);
  rows.erase(rows.find_last_not_of(' ') + 1);
  return fmt::format("{}\n{}{}\n", line, std::string(kLabelWidth + 1, ' '), rows);
}

// A curve a run, in display order.
std::vector<Curve> make_curves(const RunReport& report, const RowAxis& axis) {
  std::vector<Curve> curves;
  for (const std::size_t run : display_order(report)) {
    curves.push_back(
        {{run}, column_maxima(report.runs[run].metrics.timeline.resident_bytes, axis), {}});
  }
  return curves;
}

std::int64_t largest_value(const std::vector<Curve>& curves) {
  std::int64_t top = 1;
  for (const Curve& curve : curves)
    top = std::max(top, *std::max_element(curve.values.begin(), curve.values.end()));
  return top;
}

// Puts curves on lines of characters; those that look the same become one.
std::vector<Curve> merged(std::vector<Curve> curves, double bytes_per_line, int levels) {
  std::vector<Curve> result;
  for (Curve& curve : curves) {
    for (const std::int64_t value : curve.values) {
      const auto level = static_cast<int>(std::lround(static_cast<double>(value) / bytes_per_line));
      curve.levels.push_back(std::min(level, levels - 1));
    }
    const auto twin = std::find_if(result.begin(), result.end(), [&](const Curve& other) {
      return other.levels == curve.levels;
    });
    if (twin == result.end()) {
      result.push_back(std::move(curve));
    } else {
      twin->runs.push_back(curve.runs.front());
    }
  }
  return result;
}

// What is drawn at one height, over all columns. Curves that share a cell take turns, so that a
// common stretch shows the marks of all of them.
std::string cells_at(int level, const std::vector<Curve>& curves, const RowAxis& axis,
                     const Glyphs& glyphs) {
  std::string cells;
  for (int c = 0; c < axis.prefill_columns + axis.decode_columns; ++c) {
    std::vector<std::size_t> here;
    for (std::size_t i = 0; i < curves.size(); ++i) {
      if (curves[i].levels[static_cast<std::size_t>(c)] == level) here.push_back(i);
    }
    if (!here.empty()) {
      cells += glyphs.marks[here[static_cast<std::size_t>(c) % here.size()]];
    } else {
      cells += c == axis.prefill_columns ? glyphs.boundary : " ";
    }
  }
  return cells;
}

}  // namespace

std::string memory_chart(const RunReport& report, int width, int height, bool utf8) {
  if (report.runs.empty() || report.trace.tokens < 1) return "";
  width = std::max(width, 40);
  height = std::max(height, 8);
  const Glyphs& glyphs = utf8 ? kUnicode : kAscii;
  const int columns = width - kLabelWidth - 1;
  const RowAxis axis = make_row_axis(report.trace.tokens, report.trace.prompt_tokens, columns);

  std::vector<Curve> curves = make_curves(report, axis);
  const auto top = static_cast<double>(largest_value(curves));
  // A legend line for every two curves, as long as the picture keeps most of the height.
  const int legend_lines = std::clamp(static_cast<int>(std::min(curves.size(), kMarks) + 1) / 2, 1,
                                      std::max(1, (height - 4) / 4));
  const int levels = height - legend_lines - 3;
  const Scale scale = make_scale(top, levels);
  const double per_line = scale.step / scale.lines;
  curves = merged(std::move(curves), per_line, levels);
  const std::size_t all = curves.size();
  // At least twelve columns of the legend for each.
  const int in_legend = legend_lines * ((width - kLabelWidth) / 12);
  curves = choose(report, std::move(curves), std::min(kMarks, static_cast<std::size_t>(in_legend)));

  std::string title = columns < 60 ? "memory held" : "memory held (keys, values, policy state)";
  if (curves.size() < all) title += fmt::format(", {} of {} curves", curves.size(), all);
  std::string chart = std::string(kLabelWidth + 1, ' ') + title + "\n";
  const ByteUnit unit = byte_unit(top);
  for (int level = levels - 1; level >= 0; --level) {
    const bool tick = level % scale.lines == 0;
    std::string label;
    if (tick) {
      const double value = level * per_line / unit.bytes;
      label = level == 0 ? "0" : fmt::format("{:.4g} {}", value, unit.name);
    }
    std::string line =
        fmt::format("{:>{}} {}", label, kLabelWidth - 1, tick ? glyphs.tick : glyphs.axis);
    line += cells_at(level, curves, axis, glyphs);
    line.erase(line.find_last_not_of(' ') + 1);
    chart += line + "\n";
  }
  chart += axis_lines(axis, glyphs, columns);
  for (const std::string& line :
       legend(report, curves, glyphs, width - kLabelWidth, legend_lines)) {
    chart += std::string(kLabelWidth - 1, ' ') + line + "\n";
  }
  return chart;
}

}  // namespace kvspan
