// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>

#include "tracegen/tokenizer/template.h"
#include "tracegen/tokenizer/template_syntax.h"

namespace kvspan::tracegen::jinja {
namespace {

constexpr std::size_t kMostTokens = 1000;  // of a tag: bounds the depth of its tree

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// As Jinja reads a source: one kind of line end, and not the last one.
std::string lines_of(const std::string& source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

void append_utf8(std::uint32_t c, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80U | ((c >> shift) & 0x3FU)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0U | (c >> 6U));
    tail(0);
  } else {
    out += static_cast<char>(0xE0U | (c >> 12U));
    tail(6);
    tail(0);
  }
}

class Scanner {
 public:
  explicit Scanner(const std::string& source) : source_(lines_of(source)) {}

  std::vector<Piece> run() {
    while (at_ < source_.size()) {
      std::size_t tag = at_;
      while ((tag = source_.find('{', tag)) != std::string::npos &&
             (tag + 1 == source_.size() ||
              std::string_view("{%#").find(source_[tag + 1]) == std::string_view::npos)) {
        ++tag;
      }
      if (tag == std::string::npos) {
        put_text(source_.substr(at_));
        break;
      }
      read_tag(tag);
    }
    return std::move(pieces_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw TemplateError(line_, what); }

  void pass(std::size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  void put_text(std::string text) {
    if (!text.empty()) pieces_.push_back({Piece::Kind::text, line_, std::move(text), {}});
  }

  void read_tag(std::size_t tag) {
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    std::string text = source_.substr(at_, tag - at_);
    if (sign == '-') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (sign != '+' && kind != '{') {  // lstrip_blocks
      const std::size_t line = text.rfind('\n') + 1;
      if ((line > 0 || line_begins_) &&
          std::all_of(text.begin() + static_cast<std::ptrdiff_t>(line), text.end(), is_space)) {
        text.resize(line);
      }
    }
    put_text(std::move(text));
    pass(tag + (sign == '-' || sign == '+' ? 3 : 2));
    if (kind == '#') {
      const std::size_t end = source_.find("#}", at_);
      if (end == std::string::npos) fail("a comment does not end");
      const char before = end > at_ ? source_[end - 1] : ' ';
      pass(end + 2);
      end_tag(before, true);
      return;
    }
    Piece piece{kind == '{' ? Piece::Kind::output : Piece::Kind::statement, line_, {}, {}};
    const char before = read_tokens(kind == '{' ? "}}" : "%}", piece.tokens);
    end_tag(before, kind == '%');
    pieces_.push_back(std::move(piece));
  }

  // White space behind a tag, whose end had the sign `before`.
  void end_tag(char before, bool trim) {
    const std::size_t begin = at_;
    std::size_t end = at_;
    if (before == '-') {
      while (end < source_.size() && is_space(source_[end])) ++end;
    } else if (before != '+' && trim && end < source_.size() && source_[end] == '\n') {
      ++end;  // trim_blocks
    }
    pass(end);
    line_begins_ = end > begin && source_[end - 1] == '\n';
  }

  // The words up to `end`; the sign in front of it.
  char read_tokens(std::string_view end, std::vector<Token>& tokens) {
    int open = 0;
    while (true) {
      while (at_ < source_.size() && is_space(source_[at_])) pass(at_ + 1);
      if (at_ >= source_.size()) fail(fmt::format("a tag does not end; expected '{}'", end));
      const char c = source_[at_];
      const bool sign = c == '-' || c == '+';
      if (open == 0 && source_.compare(at_ + (sign ? 1 : 0), 2, end) == 0) {
        pass(at_ + (sign ? 3 : 2));
        tokens.emplace_back();
        return sign ? c : ' ';
      }
      if (tokens.size() == kMostTokens)
        fail(fmt::format("a tag of more than {} words", kMostTokens));
      tokens.push_back(read_token());
      if (tokens.back().kind != Token::Kind::sign) continue;
      if (std::string_view("([{").find(tokens.back().text) != std::string_view::npos) ++open;
      if (std::string_view(")]}").find(tokens.back().text) != std::string_view::npos) --open;
    }
  }

  Token read_token() {
    const char c = source_[at_];
    if (c == '\'' || c == '"') return {Token::Kind::string, read_string(c)};
    std::size_t end = at_;
    if (is_digit(c)) {
      while (end < source_.size() && is_digit(source_[end])) ++end;
      const char after = end < source_.size() ? source_[end] : ' ';
      const char digit = end + 1 < source_.size() ? source_[end + 1] : ' ';
      if (is_letter(after) || (after == '.' && is_digit(digit)))
        fail("a number that is no plain integer is not understood");
      if (end - at_ > 9) fail("an integer of more than 9 digits is not understood");
      return {Token::Kind::integer, take(end)};
    }
    if (is_letter(c)) {
      while (end < source_.size() && (is_letter(source_[end]) || is_digit(source_[end]))) ++end;
      return {Token::Kind::name, take(end)};
    }
    constexpr std::array<std::string_view, 6> kDouble = {"==", "!=", "<=", ">=", "//", "**"};
    for (const std::string_view sign : kDouble) {
      if (source_.compare(at_, 2, sign) == 0) return {Token::Kind::sign, take(at_ + 2)};
    }
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      fail(fmt::format("the character 0x{:02X} of a tag is not understood",
                       static_cast<unsigned char>(c)));
    }
    return {Token::Kind::sign, take(at_ + 1)};
  }

  std::string take(std::size_t end) {
    std::string text = source_.substr(at_, end - at_);
    pass(end);
    return text;
  }

  // The content, with Python's escapes.
  std::string read_string(char quote) {
    std::string out;
    std::size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 == source_.size()) {
        out += source_[i];
        continue;
      }
      const char c = source_[++i];
      constexpr std::string_view kNames = "ntrabfv0\\'\"";
      constexpr std::string_view kValues("\n\t\r\a\b\f\v\0\\'\"", kNames.size());
      if (const std::size_t known = kNames.find(c); known != std::string_view::npos) {
        out += kValues[known];
      } else if (c == 'x' || c == 'u') {
        i = read_code(i + 1, c == 'x' ? 2 : 4, out);
      } else if (c != '\n') {  // a line that goes on
        out += '\\';
        out += c;
      }
    }
    if (i >= source_.size()) fail("a string does not end");
    pass(i + 1);
    return out;
  }

  std::size_t read_code(std::size_t begin, std::size_t digits, std::string& out) const {
    const std::string text = source_.substr(begin, digits);
    if (text.size() < digits || text.find_first_not_of("0123456789abcdefABCDEF") != text.npos)
      fail("an escape without its hexadecimal digits");
    const auto code = static_cast<std::uint32_t>(std::stoul(text, nullptr, 16));
    if (code >= 0xD800 && code < 0xE000) fail("an escape that is half a character");
    append_utf8(code, out);
    return begin + digits - 1;
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // nothing but white space since the last line end
  std::vector<Piece> pieces_;
};

}  // namespace

std::vector<Piece> scan(const std::string& source) { return Scanner(source).run(); }

}  // namespace kvspan::tracegen::jinja
