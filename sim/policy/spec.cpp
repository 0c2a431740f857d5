// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/spec.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

__extension__ using Int128 = __int128;  // exact decimal products

constexpr int kMaxNesting = 16;
constexpr std::size_t kMaxExpanded = 100000;

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.' ||
         c == '%' || c == '/' || c == '~' || c == ':';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  RecipeSpec parse() {
    RecipeSpec spec = recipe(0);
    skip_space();
    if (pos_ < text_.size()) fail("'+' or the end");
    return spec;
  }

 private:
  [[noreturn]] void fail(const std::string& expected) {
    const std::string found =
        pos_ < text_.size() ? fmt::format("'{}'", text_[pos_]) : std::string("the end");
    throw ConfigError(fmt::format("policy '{}': expected {} at position {}, found {}", text_,
                                  expected, pos_ + 1, found));
  }
  void skip_space() {
    while (pos_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[pos_])) != 0)
      ++pos_;
  }
  bool accept(char c) {
    skip_space();
    if (pos_ >= text_.size() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }
  std::string word(const std::string& expected) {
    skip_space();
    const std::size_t begin = pos_;
    while (pos_ < text_.size() && is_word(text_[pos_])) ++pos_;
    if (pos_ == begin) fail(expected);
    return std::string(text_.substr(begin, pos_ - begin));
  }

  RecipeSpec recipe(int depth) {
    if (depth > kMaxNesting) fail(fmt::format("at most {} nested wrappers", kMaxNesting));
    RecipeSpec spec;
    do {
      spec.push_back(term(depth));
    } while (accept('+'));
    return spec;
  }

  Term term(int depth) {
    Term out;
    out.name = word("the name of a policy");
    if (!accept('(')) return out;
    if (accept(')')) return out;
    do {
      argument(out, depth);
    } while (accept(','));
    if (!accept(')')) fail("',' or ')'");
    return out;
  }

  void argument(Term& out, int depth) {
    skip_space();
    const std::size_t start = pos_;
    std::string key = word("an argument, key=value");
    if (!accept('=')) {  // not key=value: a recipe, which only a wrapper takes, and only first
      pos_ = start;
      if (!out.inner.empty() || !out.arguments.empty()) {
        pos_ = start + key.size();
        fail(fmt::format("'=' after '{}'", key));
      }
      out.inner = recipe(depth + 1);
      return;
    }
    for (const Argument& known : out.arguments) {
      if (known.key == key) {
        throw ConfigError(
            fmt::format("policy '{}': argument '{}' of {} is given twice", text_, key, out.name));
      }
    }
    Argument arg{std::move(key), {}};
    if (accept('{')) {
      do {
        arg.values.push_back(value());
      } while (accept(','));
      if (!accept('}')) fail("',' or '}'");
    } else {
      arg.values.push_back(value());
    }
    out.arguments.push_back(std::move(arg));
  }

  std::string value() {
    if (!accept('"')) return word("a value");
    std::string out;
    while (pos_ < text_.size() && text_[pos_] != '"') {
      if (text_[pos_] == '\\' && pos_ + 1 < text_.size()) ++pos_;
      out += text_[pos_++];
    }
    if (!accept('"')) fail("a closing '\"'");
    return out;
  }

  std::string_view text_;
  std::size_t pos_ = 0;
};

bool set_in(RecipeSpec& spec, const std::string& name, const std::string& key,
            const std::string& value) {
  for (Term& term : spec) {
    if (set_in(term.inner, name, key, value)) return true;
    if (term.name != name) continue;
    for (Argument& arg : term.arguments) {
      if (arg.key != key) continue;
      arg.values = {value};
      return true;
    }
    term.arguments.push_back({key, {value}});
    return true;
  }
  return false;
}

// Expands the first set found in `spec` (depth first); false if there is none.
bool expand_first(const RecipeSpec& spec, std::vector<RecipeSpec>& out) {
  for (std::size_t t = 0; t < spec.size(); ++t) {
    std::vector<RecipeSpec> inner;
    if (expand_first(spec[t].inner, inner)) {
      for (RecipeSpec& i : inner) {
        out.push_back(spec);
        out.back()[t].inner = std::move(i);
      }
      return true;
    }
    for (std::size_t a = 0; a < spec[t].arguments.size(); ++a) {
      const std::vector<std::string>& values = spec[t].arguments[a].values;
      if (values.size() < 2) continue;
      for (const std::string& v : values) {
        out.push_back(spec);
        out.back()[t].arguments[a].values = {v};
      }
      return true;
    }
  }
  return false;
}

// Reads digits with an optional fraction; false if `text` is not exactly that.
bool parse_decimal(const std::string& text, std::int64_t& mantissa, int& decimals) {
  mantissa = 0;
  decimals = 0;
  bool point = false;
  bool digit = false;
  for (const char c : text) {
    if (c == '.' && !point) {
      point = true;
    } else if (c >= '0' && c <= '9') {
      if (mantissa > 100'000'000'000'000'000) return false;
      mantissa = mantissa * 10 + (c - '0');
      decimals += point ? 1 : 0;
      digit = true;
    } else {
      return false;
    }
  }
  return digit && decimals <= 12;
}

std::int64_t power_of_ten(int exponent) {
  std::int64_t out = 1;
  for (int i = 0; i < exponent; ++i) out *= 10;
  return out;
}

}  // namespace

RecipeSpec parse_spec(std::string_view text) { return Parser(text).parse(); }

std::vector<RecipeSpec> expand_sets(const RecipeSpec& spec) {
  std::vector<RecipeSpec> once;
  if (!expand_first(spec, once)) return {spec};
  std::vector<RecipeSpec> out;
  for (const RecipeSpec& s : once) {
    for (RecipeSpec& full : expand_sets(s)) out.push_back(std::move(full));
    if (out.size() > kMaxExpanded) {
      throw ConfigError(
          fmt::format("policy '{}' expands to more than {} runs", to_text(spec), kMaxExpanded));
    }
  }
  return out;
}

std::string quote_if_needed(const std::string& value) {
  if (!value.empty() && std::all_of(value.begin(), value.end(), is_word)) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string to_text(const RecipeSpec& spec) {
  std::string out;
  for (const Term& term : spec) {
    if (!out.empty()) out += '+';
    out += term.name;
    std::vector<std::string> parts;
    if (!term.inner.empty()) parts.push_back(to_text(term.inner));
    for (const Argument& arg : term.arguments) {
      std::vector<std::string> values;
      for (const std::string& v : arg.values) values.push_back(quote_if_needed(v));
      parts.push_back(values.size() == 1
                          ? fmt::format("{}={}", arg.key, values[0])
                          : fmt::format("{}={{{}}}", arg.key, fmt::join(values, ",")));
    }
    if (!parts.empty()) out += fmt::format("({})", fmt::join(parts, ","));
  }
  return out;
}

void set_argument(RecipeSpec& spec, const std::string& name, const std::string& key,
                  const std::string& value) {
  if (!set_in(spec, name, key, value)) {
    throw ConfigError(fmt::format("policy '{}' has no term '{}'", to_text(spec), name));
  }
}

std::int64_t parse_bytes(const std::string& text, const std::string& what) {
  static const std::vector<std::pair<std::string, std::int64_t>> units = {
      {"KiB", std::int64_t{1} << 10},
      {"MiB", std::int64_t{1} << 20},
      {"GiB", std::int64_t{1} << 30},
      {"TiB", std::int64_t{1} << 40},
      {"B", 1}};
  std::string number = text;
  std::int64_t unit = 1;
  for (const auto& [suffix, size] : units) {
    if (number.size() > suffix.size() && number.ends_with(suffix)) {
      number.resize(number.size() - suffix.size());
      unit = size;
      break;
    }
  }
  while (!number.empty() && number.back() == ' ') number.pop_back();
  std::int64_t mantissa = 0;
  int decimals = 0;
  if (!parse_decimal(number, mantissa, decimals)) {
    throw ConfigError(
        fmt::format("{}: found '{}', expected bytes such as 64MiB or 80GiB (powers of two: "
                    "KiB, MiB, GiB, TiB)",
                    what, text));
  }
  const Int128 bytes = static_cast<Int128>(mantissa) * unit / power_of_ten(decimals);
  if (bytes > std::int64_t{1} << 60)
    throw ConfigError(fmt::format("{}: '{}' is out of range", what, text));
  return static_cast<std::int64_t>(bytes);
}

Amount Amount::parse(const std::string& text, const std::string& what) {
  Amount out;
  out.text = text;
  const std::string expected =
      "expected tokens (1024), a share of the prompt (10%) or bytes (64MiB)";
  if (text.ends_with('%')) {
    out.kind = Kind::share;
    if (!parse_decimal(text.substr(0, text.size() - 1), out.mantissa, out.decimals)) {
      throw ConfigError(fmt::format("{}: found '{}', {}", what, text, expected));
    }
    if (out.mantissa == 0 || out.mantissa > 100 * power_of_ten(out.decimals)) {
      throw ConfigError(
          fmt::format("{}: found '{}', a share is above 0% and at most 100%", what, text));
    }
    return out;
  }
  if (parse_decimal(text, out.mantissa, out.decimals) && out.decimals == 0) {
    if (out.mantissa < 1)
      throw ConfigError(fmt::format("{}: found '{}', expected at least 1 token", what, text));
    if (out.mantissa > std::int64_t{1} << 40) {
      throw ConfigError(fmt::format("{}: '{}' tokens is out of range (at most 2^40)", what, text));
    }
    return out;
  }
  out.decimals = 0;
  out.kind = Kind::bytes;
  if (!text.ends_with('B'))
    throw ConfigError(fmt::format("{}: found '{}', {}", what, text, expected));
  out.mantissa = parse_bytes(text, what);
  return out;
}

std::int64_t Amount::share_of(std::int64_t rows) const {
  const Int128 product = static_cast<Int128>(mantissa) * rows;
  const auto floor = static_cast<std::int64_t>(product / (100 * power_of_ten(decimals)));
  return std::max<std::int64_t>(1, floor);
}

double Amount::one_minus_share() const {
  // The decimal text of 1 - share, read back: correctly rounded, as a literal in the authors'
  // Python.
  const int digits = decimals + 2;
  const std::int64_t rest = power_of_ten(digits) - mantissa;
  return std::strtod(fmt::format("{}e-{}", rest, digits).c_str(), nullptr);
}

}  // namespace kvspan
