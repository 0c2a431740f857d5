// SPDX-License-Identifier: Apache-2.0
// The JSON files of a tokenizer's folder. Private to tracegen/tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

namespace kvspan::tracegen {

// `value` for a message, shortened.
[[nodiscard]] std::string shown(const nlohmann::json& value);

// Reads one JSON file of the folder; every complaint names it.
class JsonFile {
 public:
  explicit JsonFile(std::filesystem::path path);

  [[noreturn]] void fail(const std::string& what) const;
  // "FILE: field" for those who complain themselves.
  [[nodiscard]] std::string at(const std::string& field) const;
  [[nodiscard]] const nlohmann::json& root() const { return root_; }
  // Null where the key is absent.
  [[nodiscard]] static const nlohmann::json& member(const nlohmann::json& object, const char* key);
  [[nodiscard]] const nlohmann::json& operator[](const char* key) const {
    return member(root_, key);
  }

  [[nodiscard]] bool flag(const nlohmann::json& object, const char* key,
                          const std::string& where) const;
  [[nodiscard]] std::int32_t id(const nlohmann::json& value, const std::string& where) const;

 private:
  std::filesystem::path path_;
  nlohmann::json root_;
};

}  // namespace kvspan::tracegen
