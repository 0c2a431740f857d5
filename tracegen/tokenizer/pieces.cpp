// SPDX-License-Identifier: Apache-2.0
// What the tokens of a vocabulary stand for.
#include <array>
#include <charconv>

#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {

// GPT-2's alphabet: the printable characters of Latin-1 stand for themselves, the others, in
// ascending order, for U+0100 and what follows.
std::optional<std::string> bytes_of_printable(std::string_view text) {
  static const auto byte_of = [] {
    std::array<int, 0x144> table{};
    table.fill(-1);
    std::size_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      table[itself ? static_cast<std::size_t>(byte) : next++] = byte;
    }
    return table;
  }();
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    auto code = static_cast<std::size_t>(static_cast<unsigned char>(text[at]));
    if (code >= 0x80) {
      if (at + 1 >= text.size() || code < 0xC2 || code > 0xDF) return std::nullopt;
      code = (code & 0x1F) << 6 | (static_cast<unsigned char>(text[at + 1]) & 0x3F);
      ++at;
    }
    ++at;
    if (code >= byte_of.size() || byte_of[code] < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte_of[code]));
  }
  return out;
}

std::string piece_of_sentencepiece(std::string_view token, bool byte_tokens) {
  unsigned byte = 0;
  if (byte_tokens && token.size() == 6 && token.starts_with("<0x") && token.ends_with(">") &&
      std::from_chars(token.data() + 3, token.data() + 5, byte, 16).ptr == token.data() + 5) {
    return {static_cast<char>(byte)};
  }
  std::string out;
  for (std::size_t at = 0; at < token.size();) {
    const bool marker = token.substr(at).starts_with(kMarker);
    out.push_back(marker ? ' ' : token[at]);
    at += marker ? kMarker.size() : 1;
  }
  return out;
}

}  // namespace kvspan::tracegen
