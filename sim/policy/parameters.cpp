// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/parameters.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

std::int64_t parse_count(const std::string& text, const std::string& what) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0) {
    throw ConfigError(fmt::format("{}: found '{}', expected a whole number", what, text));
  }
  return value;
}

double parse_real(const std::string& text, const std::string& what) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value)) {
    throw ConfigError(fmt::format("{}: found '{}', expected a number", what, text));
  }
  return value;
}

void check_word(const std::vector<std::string>& words, const std::string& text,
                const std::string& what) {
  if (std::find(words.begin(), words.end(), text) != words.end()) return;
  throw ConfigError(fmt::format("{}: found '{}', expected one of {}; {}", what, text,
                                fmt::join(words, ", "), nearest_hint(text, words)));
}

void check_value(const Parameter& p, const std::string& text, const std::string& what) {
  // "auto" also stands where one way of giving a size replaces another.
  if (text == "auto" && (p.fallback == "auto" || p.sizes || p.kind == Parameter::Kind::amount))
    return;
  double number = p.range.lowest;
  switch (p.kind) {
    case Parameter::Kind::count:
      number = static_cast<double>(parse_count(text, what));
      break;
    case Parameter::Kind::real:
      number = parse_real(text, what);
      break;
    case Parameter::Kind::amount:
      (void)Amount::parse(text, what);
      break;
    case Parameter::Kind::word:
    case Parameter::Kind::flag:
      check_word(p.words(), text, what);
      break;
    case Parameter::Kind::text:
      break;
  }
  if (number < p.range.lowest || number > p.range.highest) {
    throw ConfigError(fmt::format("{}: found {}, expected {:g} to {:g}{}", what, text,
                                  p.range.lowest, p.range.highest,
                                  p.unit.empty() ? "" : " " + p.unit));
  }
}

}  // namespace

std::vector<std::string> Parameter::words() const {
  if (kind != Kind::flag) return choices;
  return fallback == "true" ? std::vector<std::string>{"true", "false"}
                            : std::vector<std::string>{"false", "true"};
}

Arguments::Arguments(const Term& term, const std::vector<Parameter>& parameters)
    : policy_(term.name), parameters_(&parameters) {
  std::vector<std::string> names;
  for (const Parameter& p : parameters) {
    names.push_back(p.name);
    values_[p.name] = p.fallback;
    given_[p.name] = false;
  }
  for (const Argument& arg : term.arguments) {
    const auto p = std::find_if(parameters.begin(), parameters.end(),
                                [&](const Parameter& known) { return known.name == arg.key; });
    if (p == parameters.end()) {
      throw ConfigError(
          fmt::format("{} has no parameter '{}'; {}", term.name, arg.key,
                      names.empty() ? "it takes none" : nearest_hint(arg.key, names)));
    }
    check_value(*p, arg.values.front(), fmt::format("{}({})", term.name, arg.key));
    values_[arg.key] = arg.values.front();
    given_[arg.key] = arg.values.front() != "auto";
  }
  for (const Parameter& p : parameters) {
    if (values_[p.name].empty()) {
      throw ConfigError(fmt::format("{} needs the parameter '{}' ({})", term.name, p.name, p.help));
    }
  }
}

bool Arguments::given(const std::string& name) const { return given_.at(name); }
bool Arguments::has(const std::string& name) const { return values_.at(name) != "auto"; }
std::int64_t Arguments::count(const std::string& name) const {
  return parse_count(text(name), name);
}
double Arguments::real(const std::string& name) const { return parse_real(text(name), name); }
Amount Arguments::amount(const std::string& name) const { return Amount::parse(text(name), name); }
const std::string& Arguments::text(const std::string& name) const { return values_.at(name); }

std::string Arguments::canonical(const std::string& without) const {
  std::vector<std::string> parts;
  for (const Parameter& p : *parameters_) {
    if (p.name == without) continue;
    parts.push_back(fmt::format("{}={}", p.name, quote_if_needed(values_.at(p.name))));
  }
  return parts.empty() ? policy_ : fmt::format("{}({})", policy_, fmt::join(parts, ","));
}

}  // namespace kvspan
