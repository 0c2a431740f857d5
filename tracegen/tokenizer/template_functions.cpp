// SPDX-License-Identifier: Apache-2.0
// Methods, filters and tests. Those that are not here are refused by name.
#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "tracegen/tokenizer/template_value.h"

namespace kvspan::tracegen::jinja {
namespace {

bool is_dict(const Value& value) {
  return value.defined && !value.names && value.plain.is_object();
}
bool is_list(const Value& value) { return value.defined && !value.names && value.plain.is_array(); }
bool is_integer(const Value& value) {
  return value.defined && !value.names && value.plain.is_number_integer();
}

const std::string& need_text(const Value& value, const std::string& what) {
  if (!value.is_text())
    throw NotUnderstood(fmt::format("{} of {}; expected a str", what, kind_of(value)));
  return value.text();
}

// Letters beyond ASCII would need tables of their own.
std::string with_case(const std::string& name, std::string text) {
  bool begins = true;
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 0x80)
      throw NotUnderstood(fmt::format("'{}' of letters beyond ASCII is not understood", name));
    const bool low = c >= 'a' && c <= 'z';
    const bool high = c >= 'A' && c <= 'Z';
    const bool up = name == "upper" || (begins && name != "lower");
    if (low && up) c = static_cast<char>(c - 'a' + 'A');
    if (high && !up) c = static_cast<char>(c - 'A' + 'a');
    begins = name == "title" && !low && !high;
  }
  return text;
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to,
                     std::int64_t most) {
  if (from.empty()) throw NotUnderstood("a replacement of nothing");
  std::string out;
  std::size_t at = 0;
  for (std::int64_t n = 0; n != most; ++n) {
    const std::size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    out += text.substr(at, found - at) + to;
    at = found + from.size();
    if (out.size() > kLongestText) throw NotUnderstood("a text that grows without end");
  }
  return out + text.substr(at);
}

// str.split: at `separator`, or at white space where there is none.
Json split_text(const std::string& text, const Value& separator, std::int64_t most) {
  Json out = Json::array();
  if (separator.is_text()) {
    const std::string& cut = separator.text();
    if (cut.empty()) throw NotUnderstood("split at nothing");
    std::size_t at = 0;
    for (std::int64_t n = 0; n != most; ++n) {
      const std::size_t found = text.find(cut, at);
      if (found == std::string::npos) break;
      out.push_back(text.substr(at, found - at));
      at = found + cut.size();
    }
    out.push_back(text.substr(at));
    return out;
  }
  if (most >= 0) throw NotUnderstood("split at white space, up to a number, is not understood");
  std::string word;
  for (const std::string& c : characters_of(text)) {
    if (!stripped(c, true, false).empty()) {
      word += c;
    } else if (!word.empty()) {
      out.push_back(std::exchange(word, {}));
    }
  }
  if (!word.empty()) out.push_back(word);
  return out;
}

std::int64_t count_of(const Value& value) {
  if (!value.defined) return -1;
  if (!is_integer(value)) throw NotUnderstood("a count that is " + kind_of(value));
  return value.plain.get<std::int64_t>();
}

Value text_method(const std::string& text, const std::string& name, const Arguments& arguments) {
  const Value first = arguments.at(0, "");
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    arguments.check(1);
    return Json(stripped(text, name != "rstrip", name != "lstrip", first));
  }
  if (name == "upper" || name == "lower" || name == "title" || name == "capitalize") {
    arguments.check(0);
    return Json(with_case(name, text));
  }
  if (name == "startswith" || name == "endswith") {
    arguments.check(1);
    const std::string& part = need_text(first, name);
    return Json(name == "startswith" ? text.starts_with(part) : text.ends_with(part));
  }
  if (name == "removeprefix" || name == "removesuffix") {
    arguments.check(1);
    const std::string& part = need_text(first, name);
    const bool prefix = name == "removeprefix";
    if (prefix ? !text.starts_with(part) : !text.ends_with(part)) return Json(text);
    return Json(text.substr(prefix ? part.size() : 0, text.size() - part.size()));
  }
  if (name == "split") {
    arguments.check(2, {"sep", "maxsplit"});
    return split_text(text, arguments.at(0, "sep"), count_of(arguments.at(1, "maxsplit")));
  }
  if (name == "replace") {
    arguments.check(3);
    return Json(replaced(text, need_text(first, name), need_text(arguments.at(1, ""), name),
                         count_of(arguments.at(2, ""))));
  }
  if (name == "find") {
    arguments.check(1);
    const std::size_t found = text.find(need_text(first, name));
    if (found == std::string::npos) return Json(-1);
    return Json(characters_of(text.substr(0, found)).size());
  }
  if (name == "join") {
    arguments.check(1);
    Arguments separator;
    separator.values.emplace_back(Json(text));
    return apply_filter("join", first, separator);
  }
  throw NotUnderstood(fmt::format("the method '{}' of a str is not understood", name));
}

Json pairs_of(const Json& dict) {
  Json out = Json::array();
  for (const auto& [key, value] : dict.items()) out.push_back(Json::array({Json(key), value}));
  return out;
}

// map, select, reject, selectattr, rejectattr.
Value chosen_of(const std::string& name, const Value& value, const Arguments& arguments) {
  Json out = Json::array();
  const bool by_attribute = name.ends_with("attr");
  Arguments rest = arguments;
  const auto next = [&]() -> std::optional<std::string> {
    if (rest.values.empty()) return std::nullopt;
    std::string text = need_text(rest.values.front(), name);
    rest.values.erase(rest.values.begin());
    return text;
  };
  const Value mapped = arguments.at(arguments.values.size(), "attribute");
  const std::optional<std::string> attribute = by_attribute ? next() : std::nullopt;
  const std::optional<std::string> function =
      name == "map" && mapped.defined ? std::nullopt : next();
  for (const Value& one : elements_of(value)) {
    if (name == "map") {
      const Value made = function ? apply_filter(*function, one, rest)
                                  : attribute_of(one, need_text(mapped, name));
      if (!made.defined) throw NotUnderstood("map over what is undefined");
      out.push_back(made.plain);
      continue;
    }
    const Value tested = attribute ? attribute_of(one, *attribute) : one;
    const bool passes = function ? passes_test(*function, tested, rest) : is_true(tested);
    if (passes != name.starts_with("reject")) out.push_back(one.plain);
  }
  return out;
}

Value json_filter(const Value& value, const Arguments& arguments) {
  arguments.check(0, {"ensure_ascii", "indent"});
  if (!value.defined || value.names)
    throw NotUnderstood(fmt::format("{} as JSON is not understood", kind_of(value)));
  if (is_true(arguments.at(1, "ensure_ascii")))
    throw NotUnderstood("tojson(ensure_ascii=true) is not understood");
  const Value indent = arguments.at(1, "indent");
  const bool lines = indent.defined && !indent.plain.is_null();
  return Json(json_text(value.plain, lines ? static_cast<int>(count_of(indent)) : 0));
}

std::size_t length_of(const Value& value) {
  if (value.is_text()) return characters_of(value.text()).size();
  return elements_of(value).size();
}

}  // namespace

Value call_method(const Value& value, const std::string& name, const Arguments& arguments) {
  if (!value.defined) throw NotUnderstood(fmt::format("'{}' is undefined", value.name));
  if (value.is_text()) return text_method(value.text(), name, arguments);
  if (is_dict(value)) {
    if (name == "get") {
      arguments.check(2);
      Value found = attribute_of(value, need_text(arguments.at(0, ""), name));
      if (found.defined) return found;
      Value other = arguments.at(1, "");
      return other.defined ? other : Value(Json());
    }
    arguments.check(0);
    if (name == "items") return pairs_of(value.plain);
    if (name == "keys" || name == "values") {
      Json out = Json::array();
      for (const auto& [key, one] : value.plain.items())
        out.push_back(name == "keys" ? Json(key) : one);
      return out;
    }
  }
  throw NotUnderstood(fmt::format("the method '{}' of {} is not understood", name, kind_of(value)));
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "trim") {
    arguments.check(1, {"chars"});
    return Json(stripped(text_of(value), true, true, arguments.at(0, "chars")));
  }
  if (name == "default" || name == "d") {
    arguments.check(2, {"default_value", "boolean"});
    const bool takes = value.defined && (is_true(value) || !is_true(arguments.at(1, "boolean")));
    if (takes) return value;
    Value other = arguments.at(0, "default_value");
    return other.defined ? other : Value(Json(""));
  }
  if (name == "tojson") return json_filter(value, arguments);
  if (name == "map" || name.starts_with("select") || name.starts_with("reject"))
    return chosen_of(name, value, arguments);
  if (name == "replace") {
    arguments.check(3);
    return text_method(text_of(value), name, arguments);
  }
  if (name == "join") {
    arguments.check(1, {"d"});
    const Value separator = arguments.at(0, "d");
    std::string out;
    bool first = true;
    for (const Value& one : elements_of(value)) {
      if (!std::exchange(first, false)) out += text_of(separator);
      out += text_of(one);
      if (out.size() > kLongestText) throw NotUnderstood("a text that grows without end");
    }
    return Json(out);
  }
  arguments.check(0);
  if (name == "length" || name == "count") return Json(length_of(value));
  if (name == "upper" || name == "lower" || name == "title" || name == "capitalize")
    return Json(with_case(name, text_of(value)));
  if (name == "string") return Json(text_of(value));
  if (name == "safe") return value;
  if (name == "items") return is_dict(value) ? pairs_of(value.plain) : Json::array();
  if (name == "first" || name == "last") return item_of(value, Json(name == "first" ? 0 : -1));
  if (name == "list" || name == "reverse") {
    Json out = Json::array();
    for (const Value& one : elements_of(value)) out.push_back(one.plain);
    if (name == "reverse" && value.is_text()) throw NotUnderstood("reverse of a str");
    if (name == "reverse") std::reverse(out.begin(), out.end());
    return out;
  }
  throw NotUnderstood(fmt::format("the filter '{}' is not understood", name));
}

bool passes_test(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "equalto" || name == "eq" || name == "sameas" || name == "ne" || name == "in") {
    arguments.check(1);
    const char* sign = name == "ne" ? "!=" : name == "in" ? "in" : "==";
    return compare(sign, value, arguments.at(0, ""));
  }
  if (name == "divisibleby") {
    arguments.check(1);
    const Value rest = binary_of("%", value, arguments.at(0, ""));
    return rest.plain == 0;
  }
  arguments.check(0);
  const bool plain = value.defined && !value.names;
  if (name == "defined") return value.defined;
  if (name == "undefined") return !value.defined;
  if (name == "none") return plain && value.plain.is_null();
  if (name == "string") return value.is_text();
  if (name == "mapping") return is_dict(value);
  if (name == "boolean") return plain && value.plain.is_boolean();
  if (name == "true") return plain && value.plain == true;
  if (name == "false") return plain && value.plain == false;
  if (name == "integer") return is_integer(value);
  if (name == "number") return plain && (value.plain.is_number() || value.plain.is_boolean());
  if (name == "iterable" || name == "sequence")
    return !value.defined || value.is_text() || is_list(value) || is_dict(value);
  if (name == "odd" || name == "even") {
    const Value rest = binary_of("%", value, Json(2));
    return rest.plain == (name == "odd" ? 1 : 0);
  }
  throw NotUnderstood(fmt::format("the test '{}' is not understood", name));
}

}  // namespace kvspan::tracegen::jinja
