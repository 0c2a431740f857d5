// SPDX-License-Identifier: Apache-2.0
// Reading JSON with the path of what is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include <nlohmann/json_fwd.hpp>

namespace kvspan::gui {

// Errors: TraceError, always: one line that begins with the path.
[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what);

// A value somewhere in a file, and the words to complain with: TraceError naming file and place.
class Node {
 public:
  Node(const std::filesystem::path& file, const nlohmann::json& value, std::string where)
      : file_(&file), value_(&value), where_(std::move(where)) {}
  [[nodiscard]] Node operator[](const char* key) const;
  // REQUIRES: i < size().
  [[nodiscard]] Node item(std::size_t i) const;
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] std::string text() const;
  [[nodiscard]] std::int64_t integer(std::int64_t low, std::int64_t high) const;
  // NaN for null.
  [[nodiscard]] double number_or_null() const;
  // Of item i; its path is only put together to complain: a timeline has millions of them.
  [[nodiscard]] double number_or_null(std::size_t i) const;
  [[nodiscard]] bool truth() const;
  [[nodiscard]] const nlohmann::json& value() const { return *value_; }
  [[noreturn]] void wrong(const std::string& what) const;

 private:
  [[nodiscard]] std::string kind() const;
  const std::filesystem::path* file_;
  const nlohmann::json* value_;
  std::string where_;
};

}  // namespace kvspan::gui
