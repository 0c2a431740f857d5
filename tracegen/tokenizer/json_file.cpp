// SPDX-License-Identifier: Apache-2.0
#include "tracegen/tokenizer/json_file.h"

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {

using nlohmann::json;

namespace {

// Sequences of Sequences of normalizers nest; those in use stay below ten.
constexpr JsonLimits kLimits{.bytes = std::size_t{64} << 20U, .depth = 64};

}  // namespace

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', true);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

JsonFile::JsonFile(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path_, error);
  if (error) fail("cannot be read: " + error.message());
  if (size > kLimits.bytes) {
    fail(fmt::format("has {} bytes; at most {} are read", size, kLimits.bytes));
  }
  std::ifstream in(path_, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in) fail("cannot be read");
  try {
    root_ = parse_json_strict(text, kLimits);
  } catch (const std::invalid_argument& wrong) {
    fail(wrong.what());
  }
  if (!root_.is_object()) fail("holds " + shown(root_) + "; expected an object");
}

void JsonFile::fail(const std::string& what) const {
  throw CheckpointError(at(escaped(valid_utf8(what))));
}

std::string JsonFile::at(const std::string& field) const { return path_text(path_) + ": " + field; }

const json& JsonFile::member(const json& object, const char* key) {
  static const json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

bool JsonFile::flag(const json& object, const char* key, const std::string& where) const {
  const json& value = member(object, key);
  if (value.is_null()) return false;
  if (!value.is_boolean())
    fail(fmt::format("{}.{} is {}; expected true or false", where, key, shown(value)));
  return value.get<bool>();
}

std::int32_t JsonFile::id(const json& value, const std::string& where) const {
  if (!value.is_number_integer() || value.is_number_float() || value < 0 || value >= kMostTokens) {
    fail(fmt::format("{} is {}; expected a token id from 0 to {}", where, shown(value),
                     kMostTokens - 1));
  }
  return value.get<std::int32_t>();
}

}  // namespace kvspan::tracegen
