// SPDX-License-Identifier: Apache-2.0
// Text for people: what comes from files and must fit one line, sizes, and the nearest known word.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan {

// `text` with every malformed byte replaced by U+FFFD.
[[nodiscard]] std::string valid_utf8(std::string_view text);
// The same with control characters replaced by spaces: names come from files, and a terminal obeys
// them. Paths: path_text() of file.h.
[[nodiscard]] std::string one_line(std::string_view text);
// Columns that a terminal uses. REQUIRES: valid UTF-8 without control characters.
[[nodiscard]] int display_width(std::string_view text);
// At most `width` columns, "..." in the middle if something had to go. REQUIRES: as display_width.
[[nodiscard]] std::string shorten_middle(std::string_view text, int width);
// "512 B", "1.50 KiB", "44.0 MiB", "100 GiB": three digits, powers of two.
[[nodiscard]] std::string human_bytes(std::int64_t bytes);

// The largest binary unit in which `bytes` is at least 1.
struct ByteUnit {
  double bytes = 1;
  std::string_view name = "B";
};
[[nodiscard]] ByteUnit byte_unit(double bytes);

// Text of unknown origin for a one-line message: 'text' with control characters escaped, cut to
// about eighty characters.
[[nodiscard]] std::string in_quotes(std::string_view text);

// "did you mean 'snapkv'?" for the nearest of `known` by edit distance, or the list of them all.
[[nodiscard]] std::string nearest_hint(const std::string& found,
                                       const std::vector<std::string>& known);

}  // namespace kvspan
