// SPDX-License-Identifier: Apache-2.0
#include "gui/model/result_node.h"

#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan::gui {

using nlohmann::json;

void fail(const std::filesystem::path& path, const std::string& what) {
  throw TraceError(fmt::format("{}: {}", one_line(path.string()), what));
}

Node Node::operator[](const char* key) const {
  if (!value_->is_object() || !value_->contains(key)) wrong(fmt::format("'{}' is missing", key));
  return {*file_, (*value_)[key], where_.empty() ? key : fmt::format("{}.{}", where_, key)};
}

Node Node::item(std::size_t i) const {
  return {*file_, (*value_)[i], fmt::format("{}.{}", where_, i)};
}

std::size_t Node::size() const {
  if (!value_->is_array()) wrong("found " + kind() + ", expected a list");
  return value_->size();
}

std::string Node::text() const {
  if (!value_->is_string()) wrong("found " + kind() + ", expected text");
  return value_->get<std::string>();
}

std::int64_t Node::integer(std::int64_t low, std::int64_t high) const {
  if (!value_->is_number_integer()) wrong("found " + kind() + ", expected a whole number");
  const bool huge = value_->is_number_unsigned() &&
                    value_->get<std::uint64_t>() > static_cast<std::uint64_t>(high);
  if (huge || value_->get<std::int64_t>() < low || value_->get<std::int64_t>() > high) {
    wrong(fmt::format("found {}, expected {} to {}", value_->dump(), low, high));
  }
  return value_->get<std::int64_t>();
}

double Node::number_or_null() const {
  if (value_->is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!value_->is_number()) wrong("found " + kind() + ", expected a number or null");
  return value_->get<double>();
}

double Node::number_or_null(std::size_t i) const {
  const json& found = (*value_)[i];
  return found.is_number() ? found.get<double>() : item(i).number_or_null();
}

bool Node::truth() const {
  if (!value_->is_boolean()) wrong("found " + kind() + ", expected true or false");
  return value_->get<bool>();
}

void Node::wrong(const std::string& what) const {
  fail(*file_, where_.empty() ? what : fmt::format("{}: {}", where_, what));
}

std::string Node::kind() const { return value_->type_name(); }

}  // namespace kvspan::gui
