// SPDX-License-Identifier: Apache-2.0
#include "sim/models/config_fields.h"

#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/models/known_models.h"

namespace kvspan::config {
namespace {

// The models of the built-in list of a family, for those whose files leave fields out.
std::string built_in(const std::string& model_type) {
  std::string names;
  for (const KnownModel& m : known_model_configs()) {
    if (m.config.find(fmt::format("\"model_type\": \"{}\"", model_type)) != std::string_view::npos)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", m.name);
  }
  return names;
}

}  // namespace

std::string shown(const nlohmann::json& value) {
  return shorten_middle(
      one_line(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)), 60);
}

Fields::Fields(nlohmann::json object, std::string where)
    : JsonFields(std::move(object)), where_(std::move(where)) {}

const char* Fields::one_of(std::initializer_list<const char*> keys) const {
  for (const char* key : keys) {
    if (has(key)) return key;
  }
  return *keys.begin();
}

Fields Fields::part(nlohmann::json object) const {
  Fields out(std::move(object), where_);
  out.family_ = family_;
  return out;
}

void Fields::fail(const std::string& what) const {
  throw ConfigError(fmt::format("'{}'{}: {}", one_line(where_),
                                family_.empty() ? "" : fmt::format(" ({})", family_), what));
}

void Fields::complain(const char* key, const nlohmann::json& found,
                      const std::string& expected) const {
  fail(fmt::format("'{}' is {}, expected {}", key, shown(found), expected));
}

void Fields::require(const char* key, const std::string& meaning) const {
  if (is_named(key)) return;
  const std::string known = built_in(family_);
  fail(fmt::format("there is no field '{}' ({}), and it is not guessed{}", key, meaning,
                   known.empty() ? "" : fmt::format("; built in: {}", known)));
}

Count Fields::count(const char* key, const char* meaning, Count highest, Count lowest) const {
  require(key, fmt::format("{}, a whole number", meaning));
  return integer(key, lowest, highest, fmt::format("{}, {} to {}", meaning, lowest, highest));
}

double Fields::real(const char* key, const char* meaning) const {
  require(key, meaning);
  const double found = number(key, meaning);
  const bool in_range = found > 0 && found < 1000;
  if (!in_range) wrong(key, fmt::format("{}, above 0", meaning));
  return found;
}

}  // namespace kvspan::config
