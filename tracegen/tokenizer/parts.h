// SPDX-License-Identifier: Apache-2.0
// Inside of the tokenizer. A text goes through these, in this order:
//
//   text --AddedTokens--> sections --normalizers--> --AddedTokens--> sections
//        --pre-tokenizers--> words --Bpe--> ids
//
// Source of the order and of all edge cases: the Hugging Face library `tokenizers`.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tracegen/tokenizer/tokenizer.h"

namespace kvspan::tracegen {

// Bytes of the UTF-8 sequence that begins with `lead`; 1 where none does.
[[nodiscard]] std::size_t utf8_length(char lead);

// A pattern of a pre-tokenizer or normalizer: an Oniguruma regular expression, matched by PCRE2.
class Pattern {
 public:
  // Errors: CheckpointError, beginning with `where`, on what is no pattern or means something else
  // in PCRE2.
  [[nodiscard]] static Pattern regex(const std::string& oniguruma, const std::string& where);
  [[nodiscard]] static Pattern literal(const std::string& text);

  // Calls use(begin, end) for all matches in a valid UTF-8 text, from left to right. An empty match
  // right behind another match does not count.
  void find(std::string_view text,
            const std::function<void(std::size_t begin, std::size_t end)>& use) const;

 private:
  Pattern(const std::string& pattern, std::uint32_t options, const std::string& where);
  std::string where_;
  std::shared_ptr<const void> code_;
};

// `first`, here and below: what is handed over begins where the whole text begins.
using Normalizer = std::function<void(std::string& text, bool& first)>;
using PieceSink = std::function<void(std::string_view piece, bool first)>;
using PreTokenizer = std::function<void(std::string_view piece, bool first, const PieceSink& next)>;

// `text` for a message: control characters escaped, shortened.
[[nodiscard]] std::string escaped(std::string_view text);

// What a normalizer or pre_tokenizer object of tokenizer.json says, in order of application; null
// says nothing. Errors: CheckpointError, beginning with `where`, on a kind that is not supported.
[[nodiscard]] std::vector<Normalizer> make_normalizers(const nlohmann::json& spec,
                                                       const std::string& where);
struct PreTokenizers {
  std::vector<PreTokenizer> stages;
  bool byte_level = false;  // the words' bytes, not their characters, are what is merged
};
[[nodiscard]] PreTokenizers make_pre_tokenizers(const nlohmann::json& spec,
                                                const std::string& where);

// The printable characters by which byte-level vocabularies write bytes ("\u0120" is a space).
// nullopt: `text` has a character that stands for no byte.
[[nodiscard]] std::optional<std::string> bytes_of_printable(std::string_view text);
// What a sentencepiece token stands for: "\u2581the" is " the"; with byte tokens, "<0x0A>" is "\n".
[[nodiscard]] std::string piece_of_sentencepiece(std::string_view token, bool byte_tokens);

// Tokens that are found in the text before anything else.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  bool lstrip = false, rstrip = false;  // takes the white space beside it
  bool single_word = false;             // only between non-words
  bool normalized = false;              // looked for in the normalized text
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);
  // Calls use(token, text) for each token found (leftmost, then longest) and use(null, text) for
  // what lies between, in order; nothing empty. Special tokens only when parse_special.
  void split(std::string_view text, bool parse_special,
             const std::function<void(const AddedToken*, std::string_view)>& use) const;
  [[nodiscard]] const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  [[nodiscard]] const AddedToken* longest_at(std::string_view text) const;
  std::vector<AddedToken> tokens_;  // ascending by content
  std::array<bool, 256> begins_{};  // some token begins with this byte
};

// Byte pair encoding of one word. Symbols are token ids. A word of n bytes takes O(n log n) time
// and some 32 n bytes.
//
//   l o w e r      each symbol knows its neighbours; a heap holds the mergeable pairs, lowest rank
//   l o w er       first, then leftmost. A merge writes the new symbol over the left one, unlinks
//   lo  w er       the right one and pushes the two new pairs. Entries of pairs that have changed
//   low   er       since are recognised when they are popped, and dropped.
class Bpe {
 public:
  struct Merge {
    std::int32_t left = 0, right = 0;
    std::uint32_t rank = 0;
    std::int32_t id = 0;
  };
  struct Options {
    bool byte_level = false;
    bool byte_fallback = false;  // unknown characters become byte tokens "<0x0A>"
    bool fuse_unk = false;
    bool ignore_merges = false;  // a word that is a token is that token
    std::optional<std::int32_t> unk;
  };
  // `tokens` maps text (byte-level: raw bytes) to id.
  Bpe(std::unordered_map<std::string, std::int32_t> tokens, std::vector<Merge> merges,
      const Options& options);

  // Appends the ids of `word`.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;
  // No merge crosses the beginning of a run of `marker` (U+2581), so that a long text may be
  // encoded in parts which end there.
  [[nodiscard]] bool separable() const { return separable_; }

 private:
  [[nodiscard]] const Merge* merge_of(std::int32_t left, std::int32_t right) const;
  void characters(std::string_view word, std::vector<std::int32_t>& ids) const;
  void merge(std::vector<std::int32_t>& ids, std::size_t first) const;

  std::unordered_map<std::string, std::int32_t> tokens_;
  std::vector<Merge> merges_;              // ascending by (left, right)
  std::vector<std::uint32_t> begin_;       // merges_ of `left` are [begin_[left], begin_[left + 1])
  std::array<std::int32_t, 256> bytes_{};  // byte-level: of the byte; fallback: of "<0x..>"; -1
  Options options_;
  bool separable_ = false;
};

inline constexpr std::string_view kMarker = "\xE2\x96\x81";  // U+2581, sentencepiece's space

// A tokenizer as its file states it.
struct TokenizerParts {
  std::vector<Normalizer> normalizers;
  PreTokenizers pre_tokenizers;
  std::optional<Bpe> bpe;
  std::vector<AddedToken> added;
  std::vector<std::string> pieces;  // by id
  std::optional<std::int32_t> bos, eos;
  Tokenizer::Bos bos_setting;
  std::string chat_template;
  std::map<std::string, std::string> named_tokens;  // "bos_token": "<s>", ..., for the template
  bool strips_space = false;                        // decoding takes the leading space off
  std::string file;                                 // for messages
};

[[nodiscard]] TokenizerParts read_tokenizer_json(const std::filesystem::path& folder);
[[nodiscard]] TokenizerParts read_tokenizer_gguf(const std::filesystem::path& file);

// Largest id + 1 that is accepted.
inline constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;

[[nodiscard]] std::string render_chat(const TokenizerParts& tokenizer,
                                      std::span<const ChatTurn> turns);

}  // namespace kvspan::tracegen
