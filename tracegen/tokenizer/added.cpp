// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {
namespace {

constexpr const char* kWord = R"([\w\x{200C}\x{200D}])";

// The character sets that decide what stands beside a token.
struct Surroundings {
  Pattern word_at_begin = Pattern::regex(std::string(R"(\A)") + kWord, "single_word");
  Pattern space_at_begin = Pattern::regex(R"(\A\s+)", "rstrip");
  Pattern space = Pattern::regex(R"(\s)", "lstrip");
  Pattern word = Pattern::regex(kWord, "single_word");
};

const Surroundings& surroundings() {
  static const Surroundings instance;
  return instance;
}

bool found(const Pattern& pattern, std::string_view text) {
  bool any = false;
  pattern.find(text, [&](std::size_t, std::size_t) { any = true; });
  return any;
}

std::string_view last_character(std::string_view text) {
  std::size_t at = text.empty() ? 0 : text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return text.substr(at);
}

std::size_t space_at_end(std::string_view text) {
  const std::size_t size = text.size();
  while (!text.empty() && found(surroundings().space, last_character(text))) {
    text.remove_suffix(last_character(text).size());
  }
  return size - text.size();
}

std::size_t space_at_begin(std::string_view text) {
  std::size_t size = 0;
  surroundings().space_at_begin.find(text, [&](std::size_t, std::size_t end) { size = end; });
  return size;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& t) { return t.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& t : tokens_) begins_[static_cast<unsigned char>(t.content[0])] = true;
}

// Narrows the range of tokens that begin as `text` does, byte by byte.
const AddedToken* AddedTokens::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  auto begin = tokens_.begin();
  auto end = tokens_.end();
  for (std::size_t depth = 0; depth < text.size() && begin != end; ++depth) {
    const auto byte_at = [&](const AddedToken& t) {
      return static_cast<int>(static_cast<unsigned char>(t.content[depth]));
    };
    const int byte = static_cast<unsigned char>(text[depth]);
    begin = std::lower_bound(begin, end, byte,
                             [&](const AddedToken& t, int b) { return byte_at(t) < b; });
    end = std::upper_bound(begin, end, byte,
                           [&](int b, const AddedToken& t) { return b < byte_at(t); });
    // Of two tokens with the same content, the first counts.
    const auto first = begin;
    while (begin != end && begin->content.size() == depth + 1) ++begin;
    if (begin != first) longest = &*first;
  }
  return longest;
}

void AddedTokens::split(std::string_view text, bool parse_special,
                        const std::function<void(const AddedToken*, std::string_view)>& use) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token =
        begins_[static_cast<unsigned char>(text[at])] ? longest_at(text.substr(at)) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    const std::string_view behind = text.substr(end);
    if (token->single_word && (found(surroundings().word, last_character(text.substr(0, begin))) ||
                               found(surroundings().word_at_begin, behind))) {
      continue;
    }
    if (token->lstrip) begin = std::max(begin - space_at_end(text.substr(0, begin)), done);
    if (token->rstrip) end += space_at_begin(behind);
    if (done < begin) use(nullptr, text.substr(done, begin - done));
    use(token, text.substr(begin, end - begin));
    done = end;
  }
  if (done < text.size()) use(nullptr, text.substr(done));
}

}  // namespace kvspan::tracegen
