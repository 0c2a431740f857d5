// SPDX-License-Identifier: Apache-2.0
#include "tracegen/tokenizer/template_value.h"

#include <algorithm>
#include <limits>
#include <utf8proc.h>

#include <fmt/format.h>

namespace kvspan::tracegen::jinja {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw NotUnderstood(what); }

bool is_plain(const Value& value) { return value.defined && !value.names; }

std::int64_t integer_of(const Value& value, const char* what) {
  if (!is_plain(value) || !value.plain.is_number_integer())
    refuse(fmt::format("{} is {}; expected an int", what, kind_of(value)));
  return value.plain.get<std::int64_t>();
}

// As Python counts an index: from the end where it is negative.
std::int64_t from_front(std::int64_t index, std::size_t size) {
  return index < 0 ? index + static_cast<std::int64_t>(size) : index;
}

bool is_white(const std::string& character) {
  utf8proc_int32_t c = 0;
  (void)utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(character.data()),
                         static_cast<utf8proc_ssize_t>(character.size()), &c);
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

Value joined(const std::string& left, const std::string& right) {
  if (left.size() + right.size() > kLongestText) refuse("a text that grows without end");
  return Json(left + right);
}

Value arithmetic(const std::string& sign, std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  bool wrong = false;
  if (sign == "+") {
    wrong = __builtin_add_overflow(a, b, &out);
  } else if (sign == "-") {
    wrong = __builtin_sub_overflow(a, b, &out);
  } else if (sign == "*") {
    wrong = __builtin_mul_overflow(a, b, &out);
  } else if ((sign == "//" || sign == "%") && b > 0) {
    const std::int64_t rest = ((a % b) + b) % b;  // Python's: the sign of the divisor
    out = sign == "%" ? rest : (a - rest) / b;
  } else {
    wrong = true;
  }
  if (wrong) refuse(fmt::format("{} {} {} is not understood", a, sign, b));
  return Json(out);
}

}  // namespace

Value Value::undefined(std::string name) {
  Value out;
  out.defined = false;
  out.name = std::move(name);
  return out;
}

Value Arguments::at(std::size_t index, const std::string& name) const {
  if (index < values.size()) return values[index];
  const auto found = named.find(name);
  return found == named.end() ? Value::undefined(name) : found->second;
}

void Arguments::check(std::size_t most, std::initializer_list<std::string_view> names) const {
  if (values.size() > most) refuse(fmt::format("{} arguments; expected {}", values.size(), most));
  for (const auto& [name, value] : named) {
    if (std::find(names.begin(), names.end(), name) == names.end())
      refuse(fmt::format("the argument '{}' is not understood", name));
  }
}

std::string kind_of(const Value& value) {
  if (!value.defined) return "undefined";
  if (value.names) return "a namespace";
  switch (value.plain.type()) {
    case Json::value_t::null:
      return "None";
    case Json::value_t::boolean:
      return "a bool";
    case Json::value_t::string:
      return "a str";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::object:
      return "a dict";
    default:
      return "an int";
  }
}

bool is_true(const Value& value) {
  if (!value.defined) return false;
  if (value.names) return true;
  switch (value.plain.type()) {
    case Json::value_t::null:
      return false;
    case Json::value_t::boolean:
      return value.plain.get<bool>();
    case Json::value_t::string:
      return !value.text().empty();
    case Json::value_t::array:
    case Json::value_t::object:
      return !value.plain.empty();
    default:
      return value.plain.get<std::int64_t>() != 0;
  }
}

std::string text_of(const Value& value) {
  if (!value.defined) return {};
  if (value.is_text()) return value.text();
  if (is_plain(value) && value.plain.is_null()) return "None";
  if (is_plain(value) && value.plain.is_boolean())
    return value.plain.get<bool>() ? "True" : "False";
  if (is_plain(value) && value.plain.is_number_integer())
    return std::to_string(value.plain.get<std::int64_t>());
  refuse(kind_of(value) + " as text is not understood");
}

std::vector<std::string> characters_of(const std::string& text) {
  std::vector<std::string> out;
  for (const char c : text) {
    if (out.empty() || (static_cast<unsigned char>(c) & 0xC0U) != 0x80U) out.emplace_back();
    out.back() += c;
  }
  return out;
}

std::vector<Value> elements_of(const Value& value) {
  std::vector<Value> out;
  if (!value.defined) return out;
  if (value.is_text()) {
    for (std::string& character : characters_of(value.text())) out.emplace_back(Json(character));
  } else if (is_plain(value) && value.plain.is_array()) {
    for (const Json& one : value.plain) out.emplace_back(one);
  } else if (is_plain(value) && value.plain.is_object()) {
    for (const auto& [key, one] : value.plain.items()) out.emplace_back(Json(key));
  } else {
    refuse(fmt::format("{} has no elements", kind_of(value)));
  }
  return out;
}

Value attribute_of(const Value& value, const std::string& name) {
  if (!value.defined) refuse(fmt::format("'{}' is undefined", value.name));
  if (value.names) {
    const auto found = value.names->find(name);
    return found == value.names->end() ? Value::undefined(name) : found->second;
  }
  if (!value.plain.is_object() || !value.plain.contains(name)) return Value::undefined(name);
  return value.plain[name];
}

Value item_of(const Value& value, const Value& key) {
  if (key.is_text()) return attribute_of(value, key.text());
  if (!value.defined) refuse(fmt::format("'{}' is undefined", value.name));
  if (!is_plain(key) || !key.plain.is_number_integer())
    refuse(fmt::format("{} as an index is not understood", kind_of(key)));
  const auto at = [&](std::size_t size) -> std::optional<std::size_t> {
    const std::int64_t i = from_front(key.plain.get<std::int64_t>(), size);
    if (i < 0 || i >= static_cast<std::int64_t>(size)) return std::nullopt;
    return static_cast<std::size_t>(i);
  };
  if (value.is_text()) {
    const std::vector<std::string> characters = characters_of(value.text());
    if (const auto i = at(characters.size())) return Json(characters[*i]);
  } else if (is_plain(value) && value.plain.is_array()) {
    if (const auto i = at(value.plain.size())) return value.plain[*i];
  }
  return Value::undefined("an element");
}

Value slice_of(const Value& value, const std::vector<Value>& bounds) {
  const std::vector<Value> all = elements_of(value);
  const auto given = [&](std::size_t i) {
    return is_plain(bounds[i]) && !bounds[i].plain.is_null();
  };
  const std::int64_t step = given(2) ? integer_of(bounds[2], "the step of a slice") : 1;
  if (step == 0) refuse("a slice of step 0");
  const auto size = static_cast<std::int64_t>(all.size());
  const std::int64_t lowest = step > 0 ? 0 : -1;
  const std::int64_t highest = step > 0 ? size : size - 1;
  const auto bound = [&](std::size_t i, std::int64_t absent) {
    if (!given(i)) return absent;
    const std::int64_t index = from_front(integer_of(bounds[i], "a bound of a slice"), all.size());
    return std::clamp(index, lowest, highest);
  };
  const std::int64_t begin = bound(0, step > 0 ? 0 : size - 1);
  const std::int64_t end = bound(1, step > 0 ? size : -1);
  Json list = Json::array();
  std::string text;
  for (std::int64_t i = begin; step > 0 ? i < end : i > end;
       i += std::clamp(step, -size - 1, size + 1)) {
    const Value& one = all[static_cast<std::size_t>(i)];
    if (value.is_text()) {
      text += one.text();
    } else {
      list.push_back(one.plain);
    }
  }
  return value.is_text() ? Json(text) : list;
}

Value unary_of(const std::string& sign, const Value& value) {
  if (sign == "not") return Json(!is_true(value));
  const std::int64_t number = integer_of(value, "an operand");
  return sign == "-" ? arithmetic("-", 0, number) : Json(number);
}

Value binary_of(const std::string& sign, const Value& left, const Value& right) {
  if (sign == "~") return joined(text_of(left), text_of(right));
  if (!left.defined || !right.defined)
    refuse(fmt::format("'{}' is undefined", left.defined ? right.name : left.name));
  if (sign == "+" && left.is_text() && right.is_text()) return joined(left.text(), right.text());
  if (sign == "+" && is_plain(left) && is_plain(right) && left.plain.is_array() &&
      right.plain.is_array()) {
    Json out = left.plain;
    if (out.size() + right.plain.size() > kLongestText) refuse("a list that grows without end");
    for (const Json& one : right.plain) out.push_back(one);
    return out;
  }
  if (!is_plain(left) || !is_plain(right) || !left.plain.is_number_integer() ||
      !right.plain.is_number_integer()) {
    refuse(fmt::format("{} {} {} is not understood", kind_of(left), sign, kind_of(right)));
  }
  return arithmetic(sign, left.plain.get<std::int64_t>(), right.plain.get<std::int64_t>());
}

bool compare(const std::string& sign, const Value& left, const Value& right) {
  if (sign == "!=") return !compare("==", left, right);
  if (sign == "not in") return !compare("in", left, right);
  if (sign == "==") {
    if (!left.defined || !right.defined) return left.defined == right.defined;
    if (left.names || right.names) return left.names == right.names;
    return left.plain == right.plain;
  }
  if (sign == "in") {
    if (right.is_text()) {
      if (!left.is_text()) refuse(fmt::format("{} in a str is not understood", kind_of(left)));
      return right.text().find(left.text()) != std::string::npos;
    }
    const std::vector<Value> all = elements_of(right);
    return std::any_of(all.begin(), all.end(),
                       [&](const Value& one) { return compare("==", left, one); });
  }
  const bool numbers = is_plain(left) && is_plain(right) && left.plain.is_number_integer() &&
                       right.plain.is_number_integer();
  if (!numbers && !(left.is_text() && right.is_text()))
    refuse(fmt::format("{} {} {} is not understood", kind_of(left), sign, kind_of(right)));
  if (sign == "<") return left.plain < right.plain;
  if (sign == "<=") return left.plain <= right.plain;
  return sign == ">" ? left.plain > right.plain : left.plain >= right.plain;
}

std::string stripped(const std::string& text, bool left, bool right, const Value& what) {
  const bool white = !what.defined || (is_plain(what) && what.plain.is_null());
  const std::vector<std::string> set =
      white ? std::vector<std::string>() : characters_of(text_of(what));
  const auto goes = [&](const std::string& c) {
    return white ? is_white(c) : std::find(set.begin(), set.end(), c) != set.end();
  };
  const std::vector<std::string> all = characters_of(text);
  auto begin = all.begin();
  auto end = all.end();
  while (left && begin != end && goes(*begin)) ++begin;
  while (right && begin != end && goes(*(end - 1))) --end;
  std::string out;
  for (; begin != end; ++begin) out += *begin;
  return out;
}

std::string json_text(const Json& value, int indent, int depth) {
  const auto line = [&](int level) {
    return indent > 0 ? "\n" + std::string(static_cast<std::size_t>(indent * level), ' ')
                      : std::string();
  };
  if (!value.is_structured()) return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (value.empty()) return value.is_array() ? "[]" : "{}";
  std::string out(1, value.is_array() ? '[' : '{');
  bool first = true;
  for (const auto& [key, one] : value.items()) {
    if (!std::exchange(first, false)) out += indent > 0 ? "," : ", ";
    out += line(depth + 1);
    if (value.is_object())
      out += Json(key).dump(-1, ' ', false, Json::error_handler_t::replace) + ": ";
    out += json_text(one, indent, depth + 1);
  }
  return out + line(depth) + (value.is_array() ? "]" : "}");
}

}  // namespace kvspan::tracegen::jinja
