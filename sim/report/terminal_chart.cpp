// SPDX-License-Identifier: Apache-2.0
#include "sim/report/terminal_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include <fmt/format.h>

namespace kvspan {

namespace {

double nice_step(double range, int most) {
  const double wanted = range / std::max(1, most);
  const double power = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= wanted * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

}  // namespace

// ---- Order and names ----------------------------------------------------------------------------

std::string label_of(const RunResult& run) {
  return one_line(run.label.empty() ? run.spec : run.label);
}

std::vector<std::size_t> display_order(const RunReport& report) {
  const auto place = [&](std::size_t run) {
    const std::string_view spec = report.runs[run].spec;
    if (report.runs[run].bound) return 2;
    return spec.substr(0, spec.find('(')) == "full" && spec.find('+') == spec.npos ? 0 : 1;
  };
  std::vector<std::size_t> order(report.runs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return place(a) < place(b); });
  return order;
}

const PhaseFidelity* quality_of(const RunResult& run) {
  if (!run.fidelity) return nullptr;
  if (run.fidelity->decode) return &*run.fidelity->decode;
  return run.fidelity->all ? &*run.fidelity->all : nullptr;
}

// ---- Axes ---------------------------------------------------------------------------------------

namespace {

// Of the width.
double decode_share(std::int64_t tokens, std::int64_t prompt) {
  return std::max(0.25, static_cast<double>(tokens - prompt) / static_cast<double>(tokens));
}

}  // namespace

RowAxis make_row_axis(std::int64_t tokens, std::int64_t prompt, int columns) {
  RowAxis axis{tokens, prompt, columns, 0};
  const std::int64_t decode = tokens - prompt;
  if (decode <= 0) return axis;
  axis.decode_columns = std::clamp(
      static_cast<int>(std::lround(decode_share(tokens, prompt) * columns)), 1, columns - 1);
  axis.prefill_columns = columns - axis.decode_columns;
  return axis;
}

std::pair<std::int64_t, std::int64_t> RowAxis::rows(int column) const {
  const bool decode = column >= prefill_columns;
  const std::int64_t base = decode ? prompt : 0;
  const std::int64_t count = decode ? tokens - prompt : prompt;
  const std::int64_t width = decode ? decode_columns : prefill_columns;
  const std::int64_t at = column - (decode ? prefill_columns : 0);
  const std::int64_t begin = at * count / width;
  return {base + begin, base + std::max(begin + 1, (at + 1) * count / width)};
}

double RowAxis::position(double row) const {
  const auto n = static_cast<double>(prompt);
  if (row < n || decode_columns == 0) return (row + 0.5) / n * prefill_columns;
  return prefill_columns + (row - n + 0.5) / (static_cast<double>(tokens) - n) * decode_columns;
}

double RowAxis::stretch() const {
  if (decode_columns == 0) return 1;
  const double share = decode_share(tokens, prompt);
  return share / (1 - share) * static_cast<double>(prompt) / static_cast<double>(tokens - prompt);
}

std::vector<Tick> ticks(double low, double high, int most) {
  std::vector<Tick> result;
  if (!(high > low)) return result;
  const double step = nice_step(high - low, most);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  const double slack = 1e-9 * step;
  for (double i = std::ceil((low - slack) / step); i * step <= high + slack; ++i) {
    const double value = i == 0 ? 0 : i * step;  // ceil() yields -0, which would be printed
    result.push_back({value, fmt::format("{:.{}f}", value, decimals)});
  }
  return result;
}

// ---- The chart ----------------------------------------------------------------------------------

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
    const std::string factor =
        fmt::format("{:.{}f}", axis.stretch(), axis.stretch() < 9.95 ? 1 : 0);
    const std::string scale = axis.stretch() > 1.05 ? " (rows " + factor + "x wider)" : "";
    // The longest text that touches no number.
    for (const std::string& text : {"decode" + scale, "decode x" + factor, std::string("decode")}) {
      const int length = static_cast<int>(text.size());
      put(rows, axis.prefill_columns + (axis.decode_columns + 1 - length) / 2, text, columns);
      if (rows.find("decode") != rows.npos) break;
    }
  }
  put(rows, (axis.prefill_columns - 7) / 2, "prefill", columns);
  rows.erase(rows.find_last_not_of(' ') + 1);
  return fmt::format("{}\n{}{}\n", line, std::string(kLabelWidth + 1, ' '), rows);
}

}  // namespace

std::string memory_chart(const RunReport& report, int width, int height, bool utf8) {
  if (report.runs.empty() || report.trace.tokens < 1) return "";
  width = std::max(width, 40);
  height = std::max(height, 8);
  const Glyphs& glyphs = utf8 ? kUnicode : kAscii;
  const int columns = width - kLabelWidth - 1;
  const RowAxis axis = make_row_axis(report.trace.tokens, report.trace.prompt_tokens, columns);

  std::vector<Curve> curves;
  std::int64_t top = 1;
  for (const std::size_t run : display_order(report)) {
    curves.push_back(
        {{run}, column_maxima(report.runs[run].metrics.timeline.resident_bytes, axis), {}});
    top =
        std::max(top, *std::max_element(curves.back().values.begin(), curves.back().values.end()));
  }
  // A legend line for every two curves, as long as the picture keeps most of the height.
  const int legend_lines = std::clamp(static_cast<int>(std::min(curves.size(), kMarks) + 1) / 2, 1,
                                      std::max(1, (height - 4) / 4));
  const int levels = height - legend_lines - 3;
  const Scale scale = make_scale(static_cast<double>(top), levels);
  const double per_line = scale.step / scale.lines;

  std::vector<Curve> merged;
  for (Curve& curve : curves) {
    for (const std::int64_t value : curve.values) {
      const auto level = static_cast<int>(std::lround(static_cast<double>(value) / per_line));
      curve.levels.push_back(std::min(level, levels - 1));
    }
    const auto twin = std::find_if(merged.begin(), merged.end(), [&](const Curve& other) {
      return other.levels == curve.levels;
    });
    if (twin == merged.end()) {
      merged.push_back(std::move(curve));
    } else {
      twin->runs.push_back(curve.runs.front());
    }
  }
  const std::size_t all = merged.size();
  // At least twelve columns of the legend for each.
  const int in_legend = legend_lines * ((width - kLabelWidth) / 12);
  curves = choose(report, std::move(merged), std::min(kMarks, static_cast<std::size_t>(in_legend)));

  std::string title = columns < 60 ? "memory held" : "memory held (keys, values, policy state)";
  if (curves.size() < all) title += fmt::format(", {} of {} curves", curves.size(), all);
  std::string chart = std::string(kLabelWidth + 1, ' ') + title + "\n";
  const ByteUnit unit = byte_unit(static_cast<double>(top));
  for (int level = levels - 1; level >= 0; --level) {
    const bool tick = level % scale.lines == 0;
    std::string label;
    if (tick) {
      const double value = level * per_line / unit.bytes;
      label = level == 0 ? "0" : fmt::format("{:.4g} {}", value, unit.name);
    }
    std::string line =
        fmt::format("{:>{}} {}", label, kLabelWidth - 1, tick ? glyphs.tick : glyphs.axis);
    for (int c = 0; c < columns; ++c) {
      // Curves that share a cell take turns, so that a common stretch shows the marks of all of
      // them.
      std::vector<std::size_t> here;
      for (std::size_t i = 0; i < curves.size(); ++i) {
        if (curves[i].levels[static_cast<std::size_t>(c)] == level) here.push_back(i);
      }
      if (!here.empty()) {
        line += glyphs.marks[here[static_cast<std::size_t>(c) % here.size()]];
      } else {
        line += c == axis.prefill_columns ? glyphs.boundary : " ";
      }
    }
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
