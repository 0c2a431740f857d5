// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/gguf.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

// tokenizer.ggml.token_type
enum TokenType : std::int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

constexpr std::size_t kLongestToken = 1024;  // of those that a score ranks

// What a name in tokenizer.ggml.pre stands for: patterns that isolate pieces, one after the other.
// Source: the tokenizer.json of the models that the names come from; "default": llama.cpp.
struct KnownPre {
  std::vector<std::string> names;
  std::vector<std::string> patterns;
  bool nfc = false;  // the text's normal form
  bool ignore_merges = false;
  bool adds_bos = false;
};

const std::vector<KnownPre>& known_pres() {
  const std::string suffixes = "'s|'t|'re|'ve|'m|'ll|'d";
  const std::string words = R"(| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
  const std::string other = R"([^\r\n\p{L}\p{N}]?)";
  const std::string upper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])";
  const std::string lower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])";
  const std::string begin = "(?i:" + suffixes + ")|" + other + R"(\p{L}+|)";
  const std::string space = R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string end = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)" + space;
  static const std::vector<KnownPre> known = {
      {{"gpt-2", "gpt2", "phi-2"}, {suffixes + words + R"(|\s+)"}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell"},
       {R"(\p{N})", suffixes + words + R"(|\s+)"}},
      {{"llama-bpe", "llama3", "llama-v3"}, {begin + R"(\p{N}{1,3})" + end}, false, true, true},
      {{"qwen2", "deepseek-r1-qwen"}, {begin + R"(\p{N})" + end}, true},
      {{"tekken"},
       {other + upper + "*" + lower + "+|" + other + upper + "+" + lower + "*|" +
        R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" + space},
       false,
       true,
       true},
      {{"default"}, {R"([\p{P}\$\+<=>\^~\|]+)", suffixes + words, R"(\p{N}+)", "[0-9][0-9][0-9]"}}};
  return known;
}

json pre_tokenizer_of(const KnownPre& pre) {
  json members = json::array();
  for (const std::string& pattern : pre.patterns) {
    members.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}});
  }
  members.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  return {{"type", "Sequence"}, {"pretokenizers", members}};
}

const KnownPre& find_pre(const Gguf& file) {
  const std::string_view name = file.text("tokenizer.ggml.pre").value_or("default");
  std::vector<std::string> names;
  for (const KnownPre& pre : known_pres()) {
    names.insert(names.end(), pre.names.begin(), pre.names.end());
    if (std::find(pre.names.begin(), pre.names.end(), name) != pre.names.end()) return pre;
  }
  file.fail("tokenizer.ggml.pre", fmt::format("is '{}'", name),
            fmt::format("one of {}", fmt::join(names, ", ")));
}

using Vocabulary = std::unordered_map<std::string, std::int32_t>;

// The tokens of a file, with their types.
struct Tokens {
  std::vector<std::string_view> text;
  std::vector<std::int64_t> type;
  Vocabulary ids;
};

Tokens read_tokens(const Gguf& file) {
  Tokens out;
  const char* key = "tokenizer.ggml.tokens";
  auto texts = file.texts(key);
  if (!texts || texts->empty()) file.fail(key, "is missing or empty", "an array of tokens");
  if (texts->size() > static_cast<std::size_t>(kMostTokens)) {
    file.fail(key, fmt::format("has {} tokens", texts->size()),
              fmt::format("at most {}", kMostTokens));
  }
  out.text = std::move(*texts);
  out.type = file.integers("tokenizer.ggml.token_type")
                 .value_or(std::vector<std::int64_t>(out.text.size(), kNormal));
  if (out.type.size() != out.text.size()) {
    file.fail("tokenizer.ggml.token_type", fmt::format("has {} elements", out.type.size()),
              fmt::format("{}, as many as there are tokens", out.text.size()));
  }
  for (std::size_t i = 0; i < out.text.size(); ++i) {
    const auto [known, is_new] =
        out.ids.emplace(std::string(out.text[i]), static_cast<std::int32_t>(i));
    if (!is_new) {
      file.fail(key, fmt::format("has {} and {} alike: '{}'", known->second, i, out.text[i]),
                "different tokens");
    }
  }
  return out;
}

std::optional<std::int32_t> read_id(const Gguf& file, const char* key, std::size_t tokens) {
  const auto value = file.integer(key);
  if (!value) return std::nullopt;
  if (*value < 0 || static_cast<std::size_t>(*value) >= tokens) {
    file.fail(key, fmt::format("is {}", *value), fmt::format("a token id below {}", tokens));
  }
  return static_cast<std::int32_t>(*value);
}

std::vector<Bpe::Merge> read_merges(const Gguf& file, const Tokens& tokens) {
  const char* key = "tokenizer.ggml.merges";
  const auto merges = file.texts(key);
  if (!merges) file.fail(key, "is missing", "an array of pairs 'LEFT RIGHT'");
  std::vector<Bpe::Merge> out;
  out.reserve(merges->size());
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const std::size_t space = merge.find(' ', 1);
    if (merge.empty() || space == std::string_view::npos) {
      file.fail(key, fmt::format("[{}] is '{}'", i, merge), "a pair 'LEFT RIGHT'");
    }
    const auto id_of = [&](const std::string& token) {
      const auto found = tokens.ids.find(token);
      if (found == tokens.ids.end()) {
        file.fail(key, fmt::format("[{}] needs '{}'", i, token),
                  "a token of tokenizer.ggml.tokens");
      }
      return found->second;
    };
    const std::string left(merge.substr(0, space));
    const std::string right(merge.substr(space + 1));
    out.push_back({id_of(left), id_of(right), static_cast<std::uint32_t>(i), id_of(left + right)});
  }
  return out;
}

// Sentencepiece joins the pair whose token has the highest score: all ways to cut a token in two
// tokens are merges of its rank.
std::vector<Bpe::Merge> merges_of_scores(const Gguf& file, const Tokens& tokens) {
  const char* key = "tokenizer.ggml.scores";
  const auto scores = file.reals(key);
  if (!scores || scores->size() != tokens.text.size()) {
    file.fail(key, scores ? fmt::format("has {} elements", scores->size()) : "is missing",
              fmt::format("{}, one for each token", tokens.text.size()));
  }
  if (std::any_of(scores->begin(), scores->end(), [](float s) { return s != s; })) {
    file.fail(key, "has a NaN", "numbers");
  }
  std::vector<float> levels = *scores;
  std::sort(levels.begin(), levels.end(), std::greater<>());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  const auto part = [&](std::string_view text) {
    const auto found = tokens.ids.find(std::string(text));
    const bool usable = found != tokens.ids.end() &&
                        tokens.type[static_cast<std::size_t>(found->second)] == kNormal;
    return usable ? found->second : -1;
  };
  std::vector<Bpe::Merge> out;
  for (std::size_t i = 0; i < tokens.text.size(); ++i) {
    if (tokens.type[i] != kNormal) continue;
    const auto level =
        std::lower_bound(levels.begin(), levels.end(), (*scores)[i], std::greater<>());
    const std::string_view text = tokens.text[i];
    if (text.size() > kLongestToken) {
      file.fail("tokenizer.ggml.tokens", fmt::format("[{}] has {} bytes", i, text.size()),
                fmt::format("tokens of at most {} bytes", kLongestToken));
    }
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const std::int32_t left = part(text.substr(0, cut));
      const std::int32_t right = left < 0 ? -1 : part(text.substr(cut));
      if (right < 0) continue;
      out.push_back({left, right, static_cast<std::uint32_t>(level - levels.begin()),
                     static_cast<std::int32_t>(i)});
    }
  }
  return out;
}

void read_byte_level(const Gguf& file, const Tokens& tokens, TokenizerParts& out) {
  const KnownPre& pre = find_pre(file);
  out.normalizers = make_normalizers(pre.nfc ? json{{"type", "NFC"}} : json(), file.name());
  out.pre_tokenizers = make_pre_tokenizers(pre_tokenizer_of(pre), file.name());
  out.bos_setting = {pre.adds_bos, "tokenizer.ggml.pre"};
  Vocabulary raw;
  for (std::size_t i = 0; i < tokens.text.size(); ++i) {
    auto bytes = bytes_of_printable(tokens.text[i]);
    const bool plain = tokens.type[i] == kNormal && bytes;
    out.pieces.push_back(plain ? *bytes : std::string(tokens.text[i]));
    if (bytes) raw.emplace(std::move(*bytes), static_cast<std::int32_t>(i));
  }
  Bpe::Options options;
  options.byte_level = true;
  options.ignore_merges = pre.ignore_merges;
  out.bpe.emplace(std::move(raw), read_merges(file, tokens), options);
}

void read_sentencepiece(const Gguf& file, const Tokens& tokens, TokenizerParts& out) {
  out.strips_space = file.flag("tokenizer.ggml.add_space_prefix").value_or(true);
  out.normalizers = make_normalizers(
      json::parse(R"({"type":"Replace","pattern":{"String":" "},"content":"\u2581"})"),
      file.name());
  if (out.strips_space) {
    const auto prepend =
        make_normalizers(json::parse(R"({"type":"Prepend","prepend":"\u2581"})"), file.name());
    out.normalizers.insert(out.normalizers.begin(), prepend.front());
  }
  out.bos_setting = {true, "tokenizer.ggml.model 'llama'"};
  Vocabulary usable;
  for (std::size_t i = 0; i < tokens.text.size(); ++i) {
    out.pieces.push_back(piece_of_sentencepiece(tokens.text[i], tokens.type[i] == kByte));
    if (tokens.type[i] == kNormal || tokens.type[i] == kByte) {
      usable.emplace(tokens.text[i], static_cast<std::int32_t>(i));
    }
  }
  Bpe::Options options;
  options.byte_fallback = true;
  options.fuse_unk = true;
  options.unk = read_id(file, "tokenizer.ggml.unknown_token_id", tokens.text.size());
  out.bpe.emplace(std::move(usable), merges_of_scores(file, tokens), options);
}

}  // namespace

TokenizerParts read_tokenizer_gguf(const std::filesystem::path& path) {
  const Gguf file = Gguf::open(path);
  TokenizerParts out;
  out.file = file.name();
  const Tokens tokens = read_tokens(file);
  const std::string_view model = file.text("tokenizer.ggml.model").value_or("");
  if (model == "gpt2") {
    read_byte_level(file, tokens, out);
  } else if (model == "llama") {
    read_sentencepiece(file, tokens, out);
  } else {
    file.fail("tokenizer.ggml.model", fmt::format("is '{}'", model),
              "'gpt2' (byte-level BPE) or 'llama' (sentencepiece BPE)");
  }
  for (std::size_t i = 0; i < tokens.text.size(); ++i) {
    const std::int64_t type = tokens.type[i];
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    AddedToken token;
    token.content = tokens.text[i];
    token.id = static_cast<std::int32_t>(i);
    token.special = type != kUserDefined;
    out.added.push_back(std::move(token));
  }
  out.bos = read_id(file, "tokenizer.ggml.bos_token_id", tokens.text.size());
  out.eos = read_id(file, "tokenizer.ggml.eos_token_id", tokens.text.size());
  if (const auto adds = file.flag("tokenizer.ggml.add_bos_token")) {
    out.bos_setting = {*adds, "tokenizer.ggml.add_bos_token"};
  }
  if (out.bos_setting.adds && !out.bos) {
    file.fail("tokenizer.ggml.bos_token_id", "is missing",
              "a token id, because " + out.bos_setting.why + " asks for a leading bos");
  }
  out.chat_template = file.text("tokenizer.chat_template").value_or("");
  // Those that llama.cpp gives to a template.
  if (out.bos) out.named_tokens["bos_token"] = tokens.text[static_cast<std::size_t>(*out.bos)];
  if (out.eos) out.named_tokens["eos_token"] = tokens.text[static_cast<std::size_t>(*out.eos)];
  return out;
}

}  // namespace kvspan::tracegen
