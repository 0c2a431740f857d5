// SPDX-License-Identifier: Apache-2.0
#include "gui/model/several.h"

#include <charconv>
#include <memory>
#include <string>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/evaluation.h"
#include "gui/model/result_node.h"
#include "gui/model/result_parts.h"

namespace kvspan::gui {

using nlohmann::json;

std::optional<std::pair<std::filesystem::path, std::size_t>> part_of(
    const std::filesystem::path& path) {
  std::error_code ignored;
  const std::string text = path.string();
  const std::size_t open = text.rfind('[');
  if (open == text.npos || !text.ends_with(']') || std::filesystem::exists(path, ignored))
    return std::nullopt;
  std::size_t number = 0;
  const char* end = text.data() + text.size() - 1;
  const auto [stop, error] = std::from_chars(text.data() + open + 1, end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return std::pair(std::filesystem::path(text.substr(0, open)), number);
}

std::vector<ResultPtr> open_results(const std::filesystem::path& path) {
  const auto part = part_of(path);
  const std::filesystem::path file = part ? part->first : path;
  if (kind_of(file) != FileKind::result) return {open_result(path)};
  json whole = parse_json(file);
  if (!whole.is_object() || !whole.contains("results") || !whole["results"].is_array()) {
    if (part) fail(file, "holds one result, which has no number");
    return {open_result(path)};
  }
  // One sample alone is a result like any other.
  const EvaluationPtr evaluation = part ? nullptr : read_evaluation(file, whole);
  json& documents = whole["results"];
  if (part && part->second >= documents.size()) {
    fail(file, fmt::format("holds the results 0 to {}, and no result {}", documents.size() - 1,
                           part->second));
  }
  std::vector<ResultPtr> results;
  for (std::size_t i = 0; i < documents.size(); ++i) {
    if (part && part->second != i) continue;
    auto result = std::make_shared<Result>();
    result->path = fmt::format("{}[{}]", file.string(), i);
    read_json(result->path, std::move(documents[i]), *result);
    result->evaluation = evaluation;
    result->sample = evaluation ? i : 0;
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace kvspan::gui
