// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_set>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {

std::size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  if (byte < 0xC0) return 1;
  if (byte < 0xE0) return 2;
  return byte < 0xF0 ? 3 : 4;
}

Bpe::Bpe(std::unordered_map<std::string, std::int32_t> tokens, std::vector<Merge> merges,
         const Options& options)
    : tokens_(std::move(tokens)), merges_(std::move(merges)), options_(options) {
  // Of a pair that is given twice, the last counts.
  std::stable_sort(merges_.begin(), merges_.end(), [](const Merge& a, const Merge& b) {
    return std::pair(a.left, a.right) < std::pair(b.left, b.right);
  });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < merges_.size(); ++i) {
    const bool again = i + 1 < merges_.size() && merges_[i].left == merges_[i + 1].left &&
                       merges_[i].right == merges_[i + 1].right;
    if (!again) merges_[kept++] = merges_[i];
  }
  merges_.resize(kept);
  begin_.assign(merges_.empty() ? 1 : static_cast<std::size_t>(merges_.back().left) + 2, 0);
  for (const Merge& m : merges_) ++begin_[static_cast<std::size_t>(m.left) + 1];
  for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];

  for (std::size_t b = 0; b < bytes_.size(); ++b) {
    const std::string name =
        options_.byte_level ? std::string(1, static_cast<char>(b)) : fmt::format("<0x{:02X}>", b);
    const auto found = tokens_.find(name);
    bytes_[b] = found == tokens_.end() ? -1 : found->second;
  }

  // A merge crosses the beginning of a run where a token has a marker behind another character.
  const auto crossed = [](std::string_view text) {
    for (std::size_t at = text.find(kMarker, 1); at != std::string_view::npos;
         at = text.find(kMarker, at + 1)) {
      if (!text.substr(0, at).ends_with(kMarker)) return true;
    }
    return false;
  };
  std::unordered_set<std::int32_t> merged;
  for (const Merge& m : merges_) merged.insert(m.id);
  separable_ = !options_.byte_level && !options_.ignore_merges &&
               tokens_.contains(std::string(kMarker)) &&
               std::none_of(tokens_.begin(), tokens_.end(), [&](const auto& token) {
                 return merged.contains(token.second) && crossed(token.first);
               });
}

const Bpe::Merge* Bpe::merge_of(std::int32_t left, std::int32_t right) const {
  const auto l = static_cast<std::size_t>(left);
  if (l + 1 >= begin_.size()) return nullptr;
  const auto begin = merges_.begin() + begin_[l];
  const auto end = merges_.begin() + begin_[l + 1];
  const auto found = std::lower_bound(begin, end, right,
                                      [](const Merge& m, std::int32_t id) { return m.right < id; });
  return found != end && found->right == right ? &*found : nullptr;
}

void Bpe::characters(std::string_view word, std::vector<std::int32_t>& ids) const {
  bool pending = false;  // an unknown token that the next one may be fused with
  const auto flush = [&] {
    if (pending) ids.push_back(*options_.unk);
    pending = false;
  };
  std::string character;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t length =
        options_.byte_level ? 1 : std::min(utf8_length(word[at]), word.size() - at);
    const std::string_view part = word.substr(at, length);
    at += length;
    std::int32_t id = -1;
    if (options_.byte_level) {
      id = bytes_[static_cast<unsigned char>(part[0])];
    } else if (const auto found = tokens_.find(character.assign(part)); found != tokens_.end()) {
      id = found->second;
    }
    if (id >= 0) {
      flush();
      ids.push_back(id);
      continue;
    }
    const auto byte_id = [&](char c) { return bytes_[static_cast<unsigned char>(c)]; };
    if (options_.byte_fallback &&
        std::all_of(part.begin(), part.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (const char c : part) ids.push_back(byte_id(c));
      continue;  // `pending` stays pending, as in the reference
    }
    if (!options_.unk) continue;
    if (!options_.fuse_unk) flush();
    pending = true;
  }
  flush();
}

void Bpe::merge(std::vector<std::int32_t>& ids, std::size_t first) const {
  struct Symbol {
    std::int32_t id, previous, next;  // id -1: merged away; previous and next -1: none
  };
  const std::size_t count = ids.size() - first;
  std::vector<Symbol> symbols(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto position = static_cast<std::int32_t>(i);
    symbols[i] = {ids[first + i], position - 1, i + 1 < count ? position + 1 : -1};
  }
  // Rank in the upper half, position in the lower one.
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> queue;
  const auto push = [&](std::int32_t left, std::int32_t right) {
    const Merge* found = merge_of(symbols[static_cast<std::size_t>(left)].id,
                                  symbols[static_cast<std::size_t>(right)].id);
    if (found != nullptr) {
      queue.push(std::uint64_t{found->rank} << 32 | static_cast<std::uint32_t>(left));
    }
  };
  for (std::size_t i = 0; i + 1 < count; ++i) {
    push(static_cast<std::int32_t>(i), static_cast<std::int32_t>(i) + 1);
  }
  while (!queue.empty()) {
    const auto rank = static_cast<std::uint32_t>(queue.top() >> 32);
    const auto position = static_cast<std::int32_t>(queue.top() & 0xFFFFFFFF);
    queue.pop();
    Symbol& left = symbols[static_cast<std::size_t>(position)];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    const Merge* found = merge_of(left.id, right.id);
    if (found == nullptr || found->rank != rank) continue;
    left.id = found->id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = position;
    if (left.previous >= 0) push(left.previous, position);
    if (left.next >= 0) push(position, left.next);
  }
  ids.resize(first);
  for (const Symbol& s : symbols) {
    if (s.id >= 0) ids.push_back(s.id);
  }
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (word.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw CheckpointError(fmt::format(
        "a text without a word boundary in {} bytes; the tokenizer takes words of up to {} bytes",
        word.size(), std::numeric_limits<std::int32_t>::max()));
  }
  if (options_.ignore_merges) {
    if (const auto found = tokens_.find(std::string(word)); found != tokens_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  const std::size_t first = ids.size();
  characters(word, ids);
  if (ids.size() - first > 1) merge(ids, first);
}

}  // namespace kvspan::tracegen
