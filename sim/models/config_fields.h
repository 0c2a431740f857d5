// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: typed access to its fields.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "sim/base/json_fields.h"

namespace kvspan::config {

using Count = std::int64_t;

constexpr Count kMostTokens = Count{1} << 40;

// What was found, short enough for a line.
[[nodiscard]] std::string shown(const nlohmann::json& value);

// A number that is not there is refused by name, never guessed. Errors: ConfigError naming the
// file, the family and the field.
class Fields final : public JsonFields {
 public:
  Fields(nlohmann::json object, std::string where);

  // The first of several spellings that is there; the first of all if none is.
  [[nodiscard]] const char* one_of(std::initializer_list<const char*> keys) const;
  // The fields of an object inside of this one.
  [[nodiscard]] Fields part(nlohmann::json object) const;
  void name_family(const std::string& model_type) { family_ = model_type; }
  [[noreturn]] void fail(const std::string& what) const;
  // Be it with null.
  void require(const char* key, const std::string& meaning) const;

  [[nodiscard]] Count count(const char* key, const char* meaning, Count highest = 1000000,
                            Count lowest = 1) const;
  [[nodiscard]] int small(const char* key, const char* meaning, int highest) const {
    return static_cast<int>(count(key, meaning, highest));
  }
  // What products of several are formed of.
  [[nodiscard]] Count width(const char* key, const char* meaning) const {
    return count(key, meaning, 65536);
  }
  [[nodiscard]] double real(const char* key, const char* meaning) const;

 private:
  [[noreturn]] void complain(const char* key, const nlohmann::json& found,
                             const std::string& expected) const override;
  std::string where_;
  std::string family_;
};

}  // namespace kvspan::config
