// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/file_checks.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/trace/trace.h"

namespace kvspan {

using nlohmann::json;

void MetaReader::fail(std::string_view key, const std::string& found,
                      const std::string& expected) const {
  throw TraceError(
      fmt::format("{}: metadata key '{}' {}; expected {}", file_, key, found, expected));
}

void MetaReader::check_format(std::string_view format, std::int64_t newest) const {
  const std::string& found = require("format", fmt::format("'{}'", format));
  if (found != format) fail("format", "is " + in_quotes(found), fmt::format("'{}'", format));
  const std::int64_t version = integer("version", 1, kMaxTokens);
  if (version > newest) {
    fail("version", fmt::format("is {}, newer than this program reads", version),
         fmt::format("{}", newest));
  }
}

const std::string* MetaReader::find(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

const std::string& MetaReader::require(const std::string& key, const std::string& expected) const {
  const std::string* text = find(key);
  if (text == nullptr) fail(key, "is missing", expected);
  return *text;
}

std::string MetaReader::text(const std::string& key) const {
  const std::string* found = find(key);
  return found == nullptr ? std::string() : *found;
}

std::int64_t MetaReader::integer(const std::string& key, std::int64_t low,
                                 std::int64_t high) const {
  const std::string expected = fmt::format("an integer in [{}, {}]", low, high);
  const std::string& text = require(key, expected);
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || value < low || value > high) {
    fail(key, "is " + in_quotes(text), expected);
  }
  return value;
}

int MetaReader::small_integer(const std::string& key, std::int64_t low, std::int64_t high) const {
  return static_cast<int>(integer(key, low, high));
}

double MetaReader::real(const std::string& key, double low, bool low_is_allowed) const {
  const std::string expected = fmt::format("a number {} {}", low_is_allowed ? ">=" : ">", low);
  const std::string& text = require(key, expected);
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || !std::isfinite(value) || value < low ||
      (value == low && !low_is_allowed)) {
    fail(key, "is " + in_quotes(text), expected);
  }
  return value;
}

json MetaReader::parse(const std::string& key, const std::string& expected) const {
  try {
    return parse_json_strict(require(key, expected));
  } catch (const std::invalid_argument& error) {
    fail(key, error.what(), expected);
  }
}

std::vector<std::int64_t> MetaReader::integers(const std::string& key, std::int64_t low,
                                               std::int64_t high) const {
  return integers_of(key, parse(key, "a JSON list of integers"), low, high);
}

std::vector<std::int64_t> MetaReader::integers_of(const std::string& key, const json& list,
                                                  std::int64_t low, std::int64_t high) const {
  if (!list.is_array()) fail(key, "is " + json_text(list), "a JSON list of integers");
  std::vector<std::int64_t> values;
  values.reserve(list.size());
  for (const json& item : list) {
    std::int64_t value = 0;
    if (!json_integer(item, &value) || value < low || value > high) {
      fail(key, "holds " + json_text(item), fmt::format("integers in [{}, {}]", low, high));
    }
    values.push_back(value);
  }
  return values;
}

namespace {

std::string expected_tensor(const std::vector<std::int64_t>& shape, Dtypes dtypes) {
  std::string text;
  for (const Dtype dtype : dtypes) {
    if (!text.empty()) text += "|";
    text += dtype_name(dtype);
  }
  text += " [";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] < 0 ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace

void TensorChecker::fail(const std::string& tensor, const std::string& what) const {
  throw TraceError(file_ + ": tensor " + in_quotes(tensor) + ": " + what);
}

const TensorView* TensorChecker::find(const std::string& name,
                                      const std::vector<std::int64_t>& shape, Dtypes dtypes) const {
  const TensorView* tensor = set_.find(name);
  if (tensor == nullptr) return nullptr;
  const bool same_shape = std::equal(
      tensor->shape.begin(), tensor->shape.end(), shape.begin(), shape.end(),
      [](std::int64_t found, std::int64_t wanted) {
        return wanted == kAnyExtent ? found >= 1 : wanted == kAnyOrNone || found == wanted;
      });
  if (!same_shape || std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
    fail(name, fmt::format("{} {}; expected {}", dtype_name(tensor->dtype),
                           shape_text(tensor->shape), expected_tensor(shape, dtypes)));
  }
  return tensor;
}

const TensorView& TensorChecker::require(const std::string& name,
                                         const std::vector<std::int64_t>& shape,
                                         Dtypes dtypes) const {
  const TensorView* tensor = find(name, shape, dtypes);
  if (tensor == nullptr) fail(name, "is missing; expected " + expected_tensor(shape, dtypes));
  return *tensor;
}

}  // namespace kvspan
