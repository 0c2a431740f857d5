// SPDX-License-Identifier: Apache-2.0
#include "sim/base/text.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace kvspan {
namespace {

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

struct RuneRange {
  char32_t first, last;
};

template <std::size_t n>
bool within(const std::array<RuneRange, n>& ranges, char32_t code) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const RuneRange& range) {
    return code >= range.first && code <= range.last;
  });
}

// A small wcwidth() that depends on no locale: combining marks, and East Asian wide characters.
int rune_width(char32_t code) {
  static constexpr std::array<RuneRange, 5> kNone{
      {{0x300, 0x36F}, {0x1AB0, 0x1AFF}, {0x200B, 0x200F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}}};
  static constexpr std::array<RuneRange, 9> kWide{{{0x1100, 0x115F},
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

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
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

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMaxShown = 80;
  std::string out = "'";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // Never cut inside a UTF-8 sequence.
    if (i >= kMaxShown && (c & 0xC0U) != 0x80U) {
      out += "...";
      break;
    }
    if (c < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += text[i];
    }
  }
  return out + "'";
}

std::string nearest_hint(const std::string& found, const std::vector<std::string>& known) {
  std::string best;
  std::size_t distance = std::max<std::size_t>(2, found.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const std::size_t d = edit_distance(found, candidate);
    if (d < distance) {
      distance = d;
      best = candidate;
    }
  }
  if (!best.empty()) return fmt::format("did you mean '{}'?", best);
  return fmt::format("known: {}", fmt::join(known, ", "));
}

}  // namespace kvspan
