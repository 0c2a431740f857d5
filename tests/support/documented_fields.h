// SPDX-License-Identifier: Apache-2.0
// The page of all fields (sim/report/README.md) against what is written.
#pragma once

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace kvspan::test {

// "a.{b,c}[]" -> "a.b[]", "a.c[]".
inline void expand(const std::string& text, std::set<std::string>& out) {
  const std::size_t open = text.find('{');
  const std::size_t close = text.find('}', open);
  if (open == text.npos || text.substr(open, 3) == "{r}" || text.substr(open, 3) == "{k}") {
    out.insert(text);
    return;
  }
  std::stringstream words(text.substr(open + 1, close - open - 1));
  for (std::string word; std::getline(words, word, ',');)
    expand(text.substr(0, open) + word + text.substr(close + 1), out);
}

// What stands in backticks in the first cell of the tables of a section.
inline std::set<std::string> documented(const std::string& section) {
  std::ifstream page(std::string(KVSPAN_TESTS_DIR) + "/../sim/report/README.md");
  std::set<std::string> out;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) inside = line.starts_with("## " + section);
    if (!inside || !line.starts_with("| `")) continue;
    const std::string cell = line.substr(1, line.find(" | ") - 1);
    static const std::regex quoted("`([^`]+)`");
    for (std::sregex_iterator at(cell.begin(), cell.end(), quoted), end; at != end; ++at)
      expand((*at)[1], out);
  }
  REQUIRE_FALSE(out.empty());
  return out;
}

// Leaves by their paths: lists are [], a layout is NAME, and parameters are one field.
inline void add_fields(const nlohmann::json& value, const std::string& path,
                       std::set<std::string>& out) {
  if (path == "runs[].parameters" || (!value.is_structured() && !value.is_null())) {
    out.insert(path);
  } else if (value.is_array()) {
    if (value.empty()) out.insert(path + "[]");
    for (const nlohmann::json& element : value) add_fields(element, path + "[]", out);
  } else {
    for (const auto& [key, below] : value.items()) {
      const std::string name = path == "runs[].layouts" ? "NAME" : key;
      add_fields(below, path.empty() ? name : path + "." + name, out);
    }
  }
}

inline void check_same(const std::set<std::string>& page, const std::set<std::string>& file) {
  for (const std::string& field : file) {
    INFO("not on the page: " << field);
    CHECK(page.contains(field));
  }
  for (const std::string& field : page) {
    INFO("not written: " << field);
    CHECK(file.contains(field));
  }
}

}  // namespace kvspan::test
