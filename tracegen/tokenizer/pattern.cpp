// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include <array>
#include <limits>
#include <pcre2.h>
#include <string>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {

std::string escaped(std::string_view text) {
  constexpr std::size_t kMost = 300;
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool begins = (byte & 0xC0) != 0x80;
    if (begins && out.size() >= kMost) return out + "...";
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& pattern,
                         const std::string& what) {
  throw CheckpointError(fmt::format("{}: pattern '{}': {}", where, escaped(pattern), what));
}

// Rewrites Oniguruma's syntax (Ruby's) where PCRE2 reads the same characters otherwise, and refuses
// what has no counterpart or is not worth one: no tokenizer in use has it.
class Rewriter {
 public:
  Rewriter(const std::string& pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    bool in_class = false;
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape(in_class);
      } else if (in_class) {
        if (c == '[') refuse(where_, in_, "a set inside a set is not supported");
        if (in_.compare(at_, 2, "&&") == 0) {
          refuse(where_, in_, "an intersection of sets is not supported");
        }
        in_class = c != ']';
        take(1);
      } else if (c == '[') {
        in_class = true;
        take(in_.compare(at_, 2, "[^") == 0 ? 2 : 1);
        if (in_.compare(at_, 1, "]") == 0) refuse(where_, in_, "a set that begins with ']'");
      } else if (c == '(' && in_.compare(at_, 2, "(?") == 0) {
        group();
      } else if (c == '{') {
        repeat();
      } else {
        take(1);
      }
    }
    return out_;
  }

 private:
  void take(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }
  void put(std::size_t count, const std::string& text) {
    out_ += text;
    at_ += count;
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse(where_, in_, "ends in a backslash");
    const char c = in_[at_ + 1];
    const std::string word = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
    switch (c) {
      case 's':
        return put(2, R"(\p{White_Space})");
      case 'S':
        return put(2, R"(\P{White_Space})");
      case 'w':
        return put(2, in_class ? word : "[" + word + "]");
      case 'W':
        if (in_class) break;
        return put(2, "[^" + word + "]");
      case 'v':
        return put(2, R"(\x0B)");
      case 'p':
      case 'P':
        return property();
      case 'u': {
        const std::string digits = in_.substr(at_ + 2, 4);
        if (digits.size() != 4 ||
            digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
          break;
        }
        return put(6, "\\x{" + digits + "}");
      }
      default:
        if (std::string_view("dDrntfaexAz").find(c) != std::string_view::npos) return take(2);
        if (static_cast<unsigned char>(c) < 0x80 &&
            std::isalnum(static_cast<unsigned char>(c)) == 0)
          return take(2);
    }
    refuse(where_, in_, fmt::format("'\\{}' is not supported here", c));
  }

  // PCRE2 reads a script's name as its extensions; Oniguruma does not.
  void property() {
    const std::size_t close = in_.find('}', at_);
    if (in_.compare(at_ + 2, 1, "{") != 0 || close == std::string::npos) {
      refuse(where_, in_, "a property without braces");
    }
    const bool negated = in_.compare(at_ + 3, 1, "^") == 0;
    const std::string name =
        in_.substr(at_ + 3 + (negated ? 1 : 0), close - at_ - 3 - (negated ? 1 : 0));
    const std::string known_scripts =
        " Han Hiragana Katakana Hangul Latin Cyrillic Greek Arabic Hebrew Thai ";
    const bool script = known_scripts.find(" " + name + " ") != std::string::npos;
    if (name.size() > 2 && !script) {
      refuse(where_, in_,
             fmt::format("property '{}' is not supported; general categories and "
                         "some scripts are:{}",
                         name, known_scripts));
    }
    put(close + 1 - at_,
        fmt::format("\\{}{{{}{}{}}}", in_[at_ + 1], negated ? "^" : "", script ? "sc:" : "", name));
  }

  void group() {
    for (const char* known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"}) {
      const std::string begin = known;
      if (in_.compare(at_, begin.size(), begin) == 0) return take(begin.size());
    }
    // Further on, Oniguruma ends its effect at the next '|' of the group.
    if (at_ == 0 && in_.compare(0, 4, "(?i)") == 0) return take(4);
    refuse(where_, in_, fmt::format("the group '{}' is not supported", in_.substr(at_, 4)));
  }

  void repeat() {
    const std::size_t close = in_.find('}', at_);
    const std::string body = close == std::string::npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    if (body.empty() || body.find_first_not_of("0123456789,") != std::string::npos ||
        body.front() == ',') {
      refuse(where_, in_, "a brace that is no repetition {n}, {n,} or {n,m}");
    }
    if (in_.compare(close + 1, 1, "+") == 0) {
      refuse(where_, in_, "'+' behind a repetition is not supported");
    }
    take(close + 1 - at_);
  }

  const std::string& in_;
  const std::string& where_;
  std::string out_;
  std::size_t at_ = 0;
};

}  // namespace

Pattern Pattern::regex(const std::string& oniguruma, const std::string& where) {
  return {Rewriter(oniguruma, where).run(), PCRE2_UCP | PCRE2_MULTILINE, where};
}

Pattern Pattern::literal(const std::string& text) { return {text, PCRE2_LITERAL, text}; }

Pattern::Pattern(const std::string& pattern, std::uint32_t options, const std::string& where)
    : where_(where) {
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options | PCRE2_UTF, &error, &offset, context.get());
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(error, text.data(), text.size());
    refuse(where, pattern,
           fmt::format("{} (at byte {})", reinterpret_cast<const char*>(text.data()), offset));
  }
  code_ = {code, pcre2_code_free};
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it, matching is only slower
}

void Pattern::find(std::string_view text,
                   const std::function<void(std::size_t, std::size_t)>& use) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  // A bound on backtracking that any text in proportion to its length may need.
  const std::size_t limit = 10'000'000 + 16 * text.size();
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  if (!context || !data) throw std::bad_alloc();
  // The compiled pattern's own stack, at most; without it, 32 KiB: some 2,000 turns of a group.
  constexpr std::size_t kStackBytes = std::size_t{16} << 20U;
  thread_local const std::unique_ptr<pcre2_jit_stack, decltype(&pcre2_jit_stack_free)> stack(
      pcre2_jit_stack_create(std::size_t{32} << 10U, kStackBytes, nullptr), pcre2_jit_stack_free);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  pcre2_set_match_limit(context.get(), static_cast<std::uint32_t>(std::min<std::size_t>(
                                           limit, std::numeric_limits<std::uint32_t>::max())));
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
  std::size_t from = 0;
  std::optional<std::size_t> last_end;
  while (from <= text.size()) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                  from, PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) {
      std::array<PCRE2_UCHAR, 256> reason{};
      pcre2_get_error_message(found, reason.data(), reason.size());
      throw CheckpointError(fmt::format("{}: the pattern could not be matched at byte {} of {}: {}",
                                        where_, from, text.size(),
                                        reinterpret_cast<const char*>(reason.data())));
    }
    const std::size_t begin = range[0];
    const std::size_t end = range[1];
    if (begin == end && last_end == end) {
      from += end < text.size() ? utf8_length(text[end]) : 1;
      continue;
    }
    from = end;
    last_end = end;
    use(begin, end);
  }
}

}  // namespace kvspan::tracegen
