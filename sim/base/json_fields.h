// SPDX-License-Identifier: Apache-2.0
// JSON of unknown origin: parsed within limits, shown in one line, and read field by field. What a
// reader complains with, and how, is its own; what it asks is the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace kvspan {

// A tree of small values takes twenty times its text, which must not be a way to exhaust memory;
// and who walks a tree may recurse.
struct JsonLimits {
  std::size_t bytes = std::size_t{16} << 20U;
  int depth = 8;
};
// JSON within the limits that repeats no key.
// Errors: std::invalid_argument with half a sentence that says what was found.
[[nodiscard]] nlohmann::json parse_json_strict(std::string_view text,
                                               const JsonLimits& limits = {});

// Python writes and reads NaN, Infinity and -Infinity, which JSON does not have: the text with them
// as strings, so that a field that is one is there, and no number.
[[nodiscard]] std::string with_quoted_non_finite(std::string_view text);

// False if `value` is no integer, or none that 64 bits hold.
[[nodiscard]] bool json_integer(const nlohmann::json& value, std::int64_t* out);
// The value for a one-line message.
[[nodiscard]] std::string json_text(const nlohmann::json& value);

// Typed fields of an object. Null counts as absent, as it does in Python.
class JsonFields {
 public:
  // REQUIRES: an object.
  explicit JsonFields(nlohmann::json object);
  JsonFields(const JsonFields&) = default;
  JsonFields& operator=(const JsonFields&) = default;
  virtual ~JsonFields() = default;

  [[nodiscard]] bool is_named(const char* key) const;  // be it with null
  [[nodiscard]] bool has(const char* key) const { return find(key) != nullptr; }
  [[nodiscard]] const nlohmann::json* find(const char* key) const;  // null: absent
  [[nodiscard]] bool flag(const char* key, bool absent) const;
  [[nodiscard]] std::string text(const char* key) const;  // "": absent
  // REQUIRES: is_named(key).
  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t low, std::int64_t high,
                                     const std::string& expected) const;
  [[nodiscard]] double number(const char* key, const std::string& expected) const;
  [[nodiscard]] const nlohmann::json& at(const char* key) const;
  [[noreturn]] void wrong(const char* key, const std::string& expected) const;

 protected:
  // Throws the reader's error, which names the file and the key.
  [[noreturn]] virtual void complain(const char* key, const nlohmann::json& found,
                                     const std::string& expected) const = 0;

 private:
  std::shared_ptr<const nlohmann::json> object_;
};

}  // namespace kvspan
