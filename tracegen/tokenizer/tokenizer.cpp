// SPDX-License-Identifier: Apache-2.0
#include "tracegen/tokenizer/tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <utf8proc.h>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {
namespace {

void check_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t character = 0;
    const utf8proc_ssize_t length = utf8proc_iterate(
        reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
        static_cast<utf8proc_ssize_t>(std::min<std::size_t>(4, text.size() - at)), &character);
    if (length <= 0) {
      throw CheckpointError(
          fmt::format("the text is not UTF-8: byte 0x{:02X} at offset {} (of {} bytes)",
                      static_cast<unsigned char>(text[at]), at, text.size()));
    }
    at += static_cast<std::size_t>(length);
  }
}

std::vector<AddedToken> chosen(const std::vector<AddedToken>& all, bool normalized) {
  std::vector<AddedToken> out;
  std::copy_if(all.begin(), all.end(), std::back_inserter(out),
               [&](const AddedToken& t) { return t.normalized == normalized; });
  return out;
}

void normalize(const std::vector<Normalizer>& normalizers, std::string& text, bool& first) {
  for (const Normalizer& n : normalizers) n(text, first);
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts tokenizer)
      : parts(std::move(tokenizer)), verbatim(chosen(parts.added, false)), normalized([&] {
          std::vector<AddedToken> tokens = chosen(parts.added, true);
          bool first = true;
          for (AddedToken& t : tokens) normalize(parts.normalizers, t.content, first);
          return tokens;
        }()) {
    for (const AddedToken& t : parts.added) {
      if (t.special) specials.push_back(t.id);
    }
    std::sort(specials.begin(), specials.end());
  }

  TokenizerParts parts;
  AddedTokens verbatim, normalized;
  std::vector<std::int32_t> specials;
};

namespace {

// One call of Tokenizer::encode: the words' ids are remembered, because texts repeat words.
class Encoder {
 public:
  Encoder(const TokenizerParts& parts, std::vector<std::int32_t>& ids) : parts_(parts), ids_(ids) {
    const std::size_t stages = parts.pre_tokenizers.stages.size();
    sinks_.resize(stages + 1);
    sinks_[stages] = [this](std::string_view text, bool) { add_text(text); };
    for (std::size_t s = stages; s-- > 0;) {
      sinks_[s] = [this, s](std::string_view text, bool first) {
        parts_.pre_tokenizers.stages[s](text, first, sinks_[s + 1]);
      };
    }
  }

  // `first`: the section begins where the text begins.
  void add_section(std::string_view section, bool first) { sinks_.front()(section, first); }

 private:
  static constexpr std::size_t kMostWords = 1 << 17;
  static constexpr std::size_t kLongestWord = 64;

  void add_text(std::string_view text) {
    while (parts_.bpe->separable()) {
      // The next beginning of a run of markers.
      std::size_t cut = text.find(kMarker, 1);
      while (cut != std::string_view::npos && text.substr(0, cut).ends_with(kMarker)) {
        cut = text.find(kMarker, cut + kMarker.size());
      }
      if (cut == std::string_view::npos) break;
      add_word(text.substr(0, cut));
      text.remove_prefix(cut);
    }
    add_word(text);
  }

  void add_word(std::string_view word) {
    if (word.size() > kLongestWord) return parts_.bpe->encode(word, ids_);
    if (const auto found = words_.find(key_.assign(word)); found != words_.end()) {
      const auto [begin, count] = found->second;
      ids_.insert(ids_.end(), known_.begin() + begin, known_.begin() + begin + count);
      return;
    }
    const std::size_t before = ids_.size();
    parts_.bpe->encode(word, ids_);
    if (words_.size() == kMostWords) return;
    words_.emplace(key_, std::pair(static_cast<std::int32_t>(known_.size()),
                                   static_cast<std::int32_t>(ids_.size() - before)));
    known_.insert(known_.end(), ids_.begin() + static_cast<std::ptrdiff_t>(before), ids_.end());
  }

  const TokenizerParts& parts_;
  std::vector<std::int32_t>& ids_;
  std::vector<PieceSink> sinks_;  // [s] is what pre-tokenizer s takes
  std::string key_;
  std::unordered_map<std::string, std::pair<std::int32_t, std::int32_t>> words_;  // into known_
  std::vector<std::int32_t> known_;
};

}  // namespace

Tokenizer Tokenizer::open(const std::filesystem::path& model) {
  Tokenizer out;
  out.impl_ = std::make_shared<const Impl>(std::filesystem::is_directory(model)
                                               ? read_tokenizer_json(model)
                                               : read_tokenizer_gguf(model));
  return out;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  check_utf8(text);
  const TokenizerParts& parts = impl_->parts;
  std::vector<std::int32_t> ids;
  Encoder encoder(parts, ids);
  impl_->verbatim.split(text, parse_special,
                        [&](const AddedToken* token, std::string_view section) {
                          if (token != nullptr) return ids.push_back(token->id);
                          bool first = section.data() == text.data();
                          const auto add = [&](const AddedToken* inner, std::string_view rest) {
                            if (inner != nullptr) {
                              ids.push_back(inner->id);
                            } else {
                              encoder.add_section(rest, first);
                            }
                            first = false;
                          };
                          if (parts.normalizers.empty())
                            return impl_->normalized.split(section, parse_special, add);
                          std::string text_now(section);
                          normalize(parts.normalizers, text_now, first);
                          impl_->normalized.split(text_now, parse_special, add);
                        });
  return ids;
}

std::string_view Tokenizer::piece(std::int32_t id) const {
  const std::vector<std::string>& pieces = impl_->parts.pieces;
  if (id < 0 || static_cast<std::size_t>(id) >= pieces.size()) return {};
  return pieces[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += piece(id);
  if (impl_->parts.strips_space && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::int64_t Tokenizer::vocabulary() const {
  return static_cast<std::int64_t>(impl_->parts.pieces.size());
}

std::optional<std::int32_t> Tokenizer::bos() const { return impl_->parts.bos; }
std::optional<std::int32_t> Tokenizer::eos() const { return impl_->parts.eos; }
const Tokenizer::Bos& Tokenizer::bos_setting() const { return impl_->parts.bos_setting; }
const std::vector<std::int32_t>& Tokenizer::special_ids() const { return impl_->specials; }

std::optional<std::int32_t> Tokenizer::id_of(std::string_view special) const {
  for (const AddedToken& t : impl_->parts.added) {
    if (t.content == special) return t.id;
  }
  return std::nullopt;
}

std::string Tokenizer::chat(std::span<const ChatTurn> turns) const {
  return render_chat(impl_->parts, turns);
}

}  // namespace kvspan::tracegen
