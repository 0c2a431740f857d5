// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <utf8proc.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "tracegen/tokenizer/json_file.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

constexpr int kMostNesting = 16;

// ---- Fields of a JSON object --------------------------------------------------------------------

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw CheckpointError(where + ": " + escaped(what));
}

std::string text_of(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    fail(where, fmt::format("'{}' is {}; expected a string", key,
                            found == object.end() ? "missing" : shown(*found)));
  }
  return found->get<std::string>();
}

bool flag_of(const json& object, const char* key, bool fallback, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_boolean()) {
    fail(where, fmt::format("'{}' is {}; expected true or false", key, shown(*found)));
  }
  return found->get<bool>();
}

std::string type_of(const json& spec, const std::string& where) {
  if (!spec.is_object()) fail(where, "is " + shown(spec) + "; expected an object with 'type'");
  return text_of(spec, "type", where);
}

// {"String": "x"} or {"Regex": "x"}
Pattern pattern_of(const json& spec, const std::string& where) {
  const auto found = spec.find("pattern");
  if (found != spec.end() && found->is_object() && found->size() == 1) {
    const std::string kind = found->begin().key();
    const json& value = found->begin().value();
    if (value.is_string() && kind == "String") return Pattern::literal(value.get<std::string>());
    if (value.is_string() && kind == "Regex")
      return Pattern::regex(value.get<std::string>(), where);
  }
  fail(where, fmt::format("'pattern' is {}; expected {{\"String\": ...}} or {{\"Regex\": ...}}",
                          found == spec.end() ? "missing" : shown(*found)));
}

// The members of a Sequence one after the other, anything else alone.
void flatten(const json& spec, const char* members, const std::string& where, int depth,
             const std::function<void(const json&, const std::string&, const std::string&)>& use) {
  if (spec.is_null()) return;
  if (depth > kMostNesting) fail(where, fmt::format("nested deeper than {}", kMostNesting));
  const std::string type = type_of(spec, where);
  if (type != "Sequence") return use(spec, type, where);
  const auto found = spec.find(members);
  if (found == spec.end() || !found->is_array()) {
    fail(where, fmt::format("'{}' of a Sequence is {}; expected an array", members,
                            found == spec.end() ? "missing" : shown(*found)));
  }
  for (std::size_t i = 0; i < found->size(); ++i) {
    const json& member = (*found)[i];
    if (member.is_null()) fail(where, fmt::format("'{}' holds null", members));
    flatten(member, members, fmt::format("{}[{}]", where, i), depth + 1, use);
  }
}

// ---- Normalizers --------------------------------------------------------------------------------

std::string replaced(std::string_view text, const Pattern& pattern, std::string_view content,
                     const std::function<void(std::size_t begin)>& on_match = {}) {
  std::string out;
  std::size_t from = 0;
  pattern.find(text, [&](std::size_t begin, std::size_t end) {
    if (on_match) on_match(begin);
    out.append(text.substr(from, begin - from)).append(content);
    from = end;
  });
  return out.append(text.substr(from));
}

// In parts, because utf8proc needs many times the text's size. Nothing composes across the
// beginning of an ASCII character.
std::string unicode_form(std::string_view text, utf8proc_option_t options) {
  constexpr std::size_t kPart = 1 << 16;
  const auto ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  std::string out;
  while (!text.empty()) {
    std::size_t size = std::min(kPart, text.size());
    while (size < text.size() && !ascii(text[size])) ++size;
    utf8proc_uint8_t* mapped = nullptr;
    const utf8proc_ssize_t length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     static_cast<utf8proc_ssize_t>(size), &mapped, options);
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, std::free);
    if (length < 0) fail("normalizer", utf8proc_errmsg(length));
    out.append(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(length));
    text.remove_prefix(size);
  }
  return out;
}

Normalizer unicode_normalizer(int options) {
  return [options](std::string& text, bool&) {
    if (std::all_of(text.begin(), text.end(),
                    [](char c) { return static_cast<unsigned char>(c) < 0x80; })) {
      return;
    }
    text = unicode_form(text, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options));
  };
}

Normalizer strip(bool left, bool right) {
  const Pattern space = Pattern::regex(R"(\s+)", "Strip");
  return [=](std::string& text, bool& first) {
    std::size_t begin = 0;
    std::size_t end = text.size();
    space.find(text, [&](std::size_t from, std::size_t to) {
      if (left && from == 0) begin = to;
      if (right && to == text.size()) end = std::max(from, begin);
    });
    text = text.substr(begin, end - begin);
    first = first && begin == 0;
  };
}

Normalizer make_normalizer(const json& spec, const std::string& type, const std::string& where) {
  if (type == "NFC") return unicode_normalizer(UTF8PROC_COMPOSE);
  if (type == "NFD") return unicode_normalizer(UTF8PROC_DECOMPOSE);
  if (type == "NFKC") return unicode_normalizer(UTF8PROC_COMPAT | UTF8PROC_COMPOSE);
  if (type == "NFKD") return unicode_normalizer(UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE);
  if (type == "Strip") {
    return strip(flag_of(spec, "strip_left", true, where),
                 flag_of(spec, "strip_right", true, where));
  }
  if (type == "Prepend") {
    return [prefix = text_of(spec, "prepend", where)](std::string& text, bool&) {
      if (!text.empty()) text.insert(0, prefix);
    };
  }
  if (type == "Replace") {
    return [pattern = pattern_of(spec, where), content = text_of(spec, "content", where)](
               std::string& text, bool& first) {
      text = replaced(text, pattern, content, [&](std::size_t begin) {
        first = first && begin > 0;  // what is put there does not come from there
      });
    };
  }
  fail(where, fmt::format("normalizer '{}' is not supported; supported: Sequence, NFC, NFD, NFKC, "
                          "NFKD, Strip, Prepend, Replace",
                          type));
}

// ---- Pre-tokenizers -----------------------------------------------------------------------------

// What becomes of the matches of a pattern; the text between them is a piece in any case.
enum class Behavior : std::uint8_t {
  isolated,              // pieces of their own
  removed,               // dropped
  contiguous,            // adjacent ones are one piece
  merged_with_previous,  // the first of a run belongs to the piece before it
  merged_with_next       // the last of a run belongs to the piece behind it
};

Behavior behavior_of(const json& spec, const std::string& where) {
  const std::vector<std::string> names = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                          "MergedWithNext"};
  const std::string name = text_of(spec, "behavior", where);
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    fail(where, fmt::format("behavior '{}' is not known; {}", name, nearest_hint(name, names)));
  }
  return static_cast<Behavior>(found - names.begin());
}

// Joins matches and the gaps between them to pieces; one piece is held back.
class Joiner {
 public:
  Joiner(Behavior behavior, std::string_view text, bool first, const PieceSink& next)
      : behavior_(behavior), text_(text), first_(first), next_(next) {}

  void add(std::size_t begin, std::size_t end, bool is_match) {
    const bool joins = (behavior_ == Behavior::contiguous && is_match == was_match_) ||
                       (behavior_ == Behavior::merged_with_previous && is_match && !was_match_) ||
                       (behavior_ == Behavior::merged_with_next && !is_match && was_match_);
    if (!joins || !held_) {
      flush();
      begin_ = begin;
    }
    end_ = end;
    held_ = !(behavior_ == Behavior::removed && is_match);
    was_match_ = is_match;
  }
  void flush() {
    if (held_ && begin_ < end_) next_(text_.substr(begin_, end_ - begin_), first_ && begin_ == 0);
    held_ = false;
  }

 private:
  Behavior behavior_;
  std::string_view text_;
  bool first_;
  const PieceSink& next_;
  std::size_t begin_ = 0, end_ = 0;
  bool held_ = false;
  bool was_match_ = false;
};

PreTokenizer split(Pattern pattern, Behavior behavior, bool invert = false) {
  return
      [=, pattern = std::move(pattern)](std::string_view text, bool first, const PieceSink& next) {
        Joiner joiner(behavior, text, first, next);
        std::size_t from = 0;
        pattern.find(text, [&](std::size_t begin, std::size_t end) {
          if (from < begin) joiner.add(from, begin, invert);
          joiner.add(begin, end, !invert);
          from = end;
        });
        if (from < text.size()) joiner.add(from, text.size(), invert);
        joiner.flush();
      };
}

PreTokenizer prepend(std::string prefix, bool first_only) {
  return [prefix = std::move(prefix), first_only](std::string_view text, bool first,
                                                  const PieceSink& next) {
    if (text.starts_with(prefix) || (first_only && !first)) return next(text, first);
    next(prefix + std::string(text), first);
  };
}

void add_metaspace(const json& spec, const std::string& where, PreTokenizers& out) {
  const std::string marker = text_of(spec, "replacement", where);
  if (marker.empty() || utf8_length(marker[0]) != marker.size()) {
    fail(where, fmt::format("'replacement' is '{}'; expected one character", marker));
  }
  const std::string scheme =
      spec.contains("prepend_scheme") ? text_of(spec, "prepend_scheme", where) : "always";
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    fail(where,
         fmt::format("prepend_scheme '{}' is not known; known: always, first, never", scheme));
  }
  if (!flag_of(spec, "add_prefix_space", scheme != "never", where) && scheme != "never") {
    fail(where, fmt::format("add_prefix_space is false and prepend_scheme '{}'", scheme));
  }
  out.stages.push_back([marker, space = Pattern::literal(" ")](std::string_view text, bool first,
                                                               const PieceSink& next) {
    next(replaced(text, space, marker), first);
  });
  if (scheme != "never") out.stages.push_back(prepend(marker, scheme == "first"));
  if (flag_of(spec, "split", true, where)) {
    out.stages.push_back(split(Pattern::literal(marker), Behavior::merged_with_next));
  }
}

constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void add_pre_tokenizer(const json& spec, const std::string& type, const std::string& where,
                       PreTokenizers& out) {
  const auto regex = [&](const char* pattern, Behavior behavior) {
    out.stages.push_back(split(Pattern::regex(pattern, where), behavior));
  };
  if (out.byte_level) {
    fail(where, fmt::format("pre-tokenizer '{}' behind ByteLevel is not supported", type));
  }
  if (type == "Split") {
    out.stages.push_back(split(pattern_of(spec, where), behavior_of(spec, where),
                               flag_of(spec, "invert", false, where)));
  } else if (type == "ByteLevel") {
    out.byte_level = true;
    if (flag_of(spec, "add_prefix_space", true, where)) {
      out.stages.push_back(prepend(" ", false));
    }
    if (flag_of(spec, "use_regex", true, where)) regex(kGpt2, Behavior::isolated);
  } else if (type == "Digits") {
    regex(R"(\p{N})", flag_of(spec, "individual_digits", false, where) ? Behavior::isolated
                                                                       : Behavior::contiguous);
  } else if (type == "Punctuation") {
    const json isolated = {{"behavior", "Isolated"}};
    regex(R"([\p{P}\x21-\x2F\x3A-\x40\x5B-\x60\x7B-\x7E])",
          behavior_of(spec.contains("behavior") ? spec : isolated, where));
  } else if (type == "Whitespace") {
    out.stages.push_back(
        split(Pattern::regex(R"([\w\x{200C}\x{200D}]+|[^\w\s\x{200C}\x{200D}]+)", where),
              Behavior::removed, true));
  } else if (type == "WhitespaceSplit") {
    regex(R"(\s)", Behavior::removed);
  } else if (type == "Metaspace") {
    add_metaspace(spec, where, out);
  } else {
    fail(where,
         fmt::format("pre-tokenizer '{}' is not supported; supported: Sequence, Split, ByteLevel, "
                     "Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace",
                     type));
  }
}

}  // namespace

std::vector<Normalizer> make_normalizers(const json& spec, const std::string& where) {
  std::vector<Normalizer> out;
  flatten(spec, "normalizers", where, 0,
          [&](const json& one, const std::string& type, const std::string& at) {
            out.push_back(make_normalizer(one, type, at));
          });
  return out;
}

PreTokenizers make_pre_tokenizers(const json& spec, const std::string& where) {
  PreTokenizers out;
  flatten(spec, "pretokenizers", where, 0,
          [&](const json& one, const std::string& type, const std::string& at) {
            add_pre_tokenizer(one, type, at, out);
          });
  return out;
}

}  // namespace kvspan::tracegen
