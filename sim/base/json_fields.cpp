// SPDX-License-Identifier: Apache-2.0
#include "sim/base/json_fields.h"

#include <limits>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"

namespace kvspan {

using nlohmann::json;

json parse_json_strict(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    throw std::invalid_argument(
        fmt::format("is {} bytes long, more than {}", text.size(), limits.bytes));
  }
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= limits.depth) {
      throw std::invalid_argument(fmt::format("is nested deeper than {}", limits.depth));
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw std::invalid_argument("repeats the key " + json_text(parsed));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& error) {
    throw std::invalid_argument(
        fmt::format("is {}, which is not valid JSON (byte {})", in_quotes(text), error.byte));
  } catch (const json::exception&) {  // a number that no double holds
    throw std::invalid_argument("is " + in_quotes(text) + ", which holds a number out of range");
  }
}

std::string with_quoted_non_finite(std::string_view text) {
  std::string out;
  bool inside = false;  // a string
  for (std::size_t i = 0; i < text.size();) {
    std::string_view word;
    for (const std::string_view known : {"NaN", "Infinity", "-Infinity"}) {
      if (!inside && text.substr(i).starts_with(known)) word = known;
    }
    if (!word.empty()) {
      out += '"';
      out += word;
      out += '"';
      i += word.size();
      continue;
    }
    if (inside && text[i] == '\\' && i + 1 < text.size())
      out += text[i++];
    else if (text[i] == '"')
      inside = !inside;
    out += text[i++];
  }
  return out;
}

bool json_integer(const json& value, std::int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return false;
  }
  *out = value.get<std::int64_t>();
  return true;
}

std::string json_text(const json& value) {
  return in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

JsonFields::JsonFields(json object) : object_(std::make_shared<const json>(std::move(object))) {}

bool JsonFields::is_named(const char* key) const { return object_->contains(key); }

const json* JsonFields::find(const char* key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::flag(const char* key, bool absent) const {
  const json* value = find(key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) wrong(key, "true or false");
  return value->get<bool>();
}

std::string JsonFields::text(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) wrong(key, "a text");
  return value->get<std::string>();
}

std::int64_t JsonFields::integer(const char* key, std::int64_t low, std::int64_t high,
                                 const std::string& expected) const {
  std::int64_t value = 0;
  if (!json_integer(at(key), &value) || value < low || value > high) wrong(key, expected);
  return value;
}

double JsonFields::number(const char* key, const std::string& expected) const {
  if (!at(key).is_number()) wrong(key, expected);
  return at(key).get<double>();
}

const json& JsonFields::at(const char* key) const { return (*object_)[key]; }

void JsonFields::wrong(const char* key, const std::string& expected) const {
  complain(key, at(key), expected);
  __builtin_unreachable();  // GCC forgets [[noreturn]] in virtual calls
}

}  // namespace kvspan
