// SPDX-License-Identifier: Apache-2.0
#include "sim/terminal_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include <fmt/format.h>

namespace kvspan {

namespace {

// ---- Text ---------------------------------------------------------------------------------------

struct Rune {
  char32_t code = 0;
  std::size_t bytes = 1;
  bool valid = false;
};

// The first code point of a text that is not empty.
Rune first_rune(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1, true};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  char32_t code = lead & (0xFFU >> (bytes + 1));
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return {};
    code = (code << 6U) | (byte(i) & 0x3FU);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (overlong || surrogate || code > 0x10FFFF) return {};
  return {code, bytes, true};
}

struct Range {
  char32_t first, last;
};

template <std::size_t n>
bool within(const std::array<Range, n>& ranges, char32_t code) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const Range& range) { return code >= range.first && code <= range.last; });
}

// A small wcwidth() that depends on no locale: combining marks, and East Asian wide characters.
int rune_width(char32_t code) {
  static constexpr std::array<Range, 5> kNone{
      {{0x300, 0x36F}, {0x1AB0, 0x1AFF}, {0x200B, 0x200F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}}};
  static constexpr std::array<Range, 9> kWide{{{0x1100, 0x115F},
                                               {0x2E80, 0x303E},
                                               {0x3041, 0xA4CF},
                                               {0xAC00, 0xD7A3},
                                               {0xF900, 0xFAFF},
                                               {0xFE30, 0xFE6F},
                                               {0xFF00, 0xFF60},
                                               {0x1F300, 0x1F9FF},
                                               {0x20000, 0x3FFFD}}};
  if (within(kNone, code)) return 0;
  return within(kWide, code) ? 2 : 1;
}

std::string cleaned(std::string_view text, bool controls_too) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Rune rune = first_rune(text);
    const bool control = rune.code < 0x20 || (rune.code >= 0x7F && rune.code < 0xA0);
    if (!rune.valid) {
      result += "\uFFFD";
    } else if (control && controls_too) {
      result += ' ';
    } else {
      result += text.substr(0, rune.bytes);
    }
    text.remove_prefix(rune.bytes);
  }
  return result;
}

double nice_step(double range, int most) {
  const double wanted = range / std::max(1, most);
  const double power = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= wanted * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

}  // namespace

std::string valid_utf8(std::string_view text) { return cleaned(text, false); }
std::string one_line(std::string_view text) { return cleaned(text, true); }

int display_width(std::string_view text) {
  int width = 0;
  while (!text.empty()) {
    const Rune rune = first_rune(text);
    width += rune_width(rune.code);
    text.remove_prefix(rune.bytes);
  }
  return width;
}

std::string shorten_middle(std::string_view text, int width) {
  constexpr std::string_view kDots = "...";
  if (display_width(text) <= width) return std::string(text);
  const std::string_view dots = kDots.substr(0, static_cast<std::size_t>(std::clamp(width, 0, 3)));
  const int room = std::max(0, width - static_cast<int>(dots.size()));
  // The bytes at which a cut is possible, and the columns before each.
  std::vector<std::pair<std::size_t, int>> cuts{{0, 0}};
  for (std::size_t at = 0; at < text.size();) {
    const Rune rune = first_rune(text.substr(at));
    at += rune.bytes;
    cuts.emplace_back(at, cuts.back().second + rune_width(rune.code));
  }
  std::size_t head = 0;
  while (head + 1 < cuts.size() && cuts[head + 1].second <= (room + 1) / 2) ++head;
  std::size_t tail = cuts.size() - 1;
  while (tail > 0 && cuts.back().second - cuts[tail - 1].second <= room - cuts[head].second) --tail;
  std::string result(text.substr(0, cuts[head].first));
  result += dots;
  result += text.substr(cuts[tail].first);
  return result;
}

ByteUnit byte_unit(double bytes) {
  constexpr std::array<std::string_view, 6> kNames{"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  ByteUnit unit;
  for (std::size_t i = 1; i < kNames.size() && bytes >= 1023.5 * unit.bytes; ++i) {
    unit = {unit.bytes * 1024, kNames[i]};
  }
  return unit;
}

std::string human_bytes(std::int64_t bytes) {
  const ByteUnit unit = byte_unit(static_cast<double>(bytes));
  if (unit.bytes == 1) return fmt::format("{} B", bytes);
  const double value = static_cast<double>(bytes) / unit.bytes;
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, unit.name);
}

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
