// SPDX-License-Identifier: Apache-2.0
#include "sim/report/csv.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/report/json.h"

namespace kvspan {

using nlohmann::json;

std::string csv_field(std::string_view text) {
  if (text.find_first_of("\",\r\n") == text.npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

namespace {

// The value at a dotted path, null if it is not there.
const json& at_path(const json& root, std::string_view path) {
  static const json kNull;
  const json* value = &root;
  while (!path.empty()) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    const std::string key(path.substr(0, dot));
    path.remove_prefix(std::min(dot + 1, path.size()));
    if (value->is_array()) {
      const std::size_t index = std::stoul(key);
      if (index >= value->size()) return kNull;
      value = &(*value)[index];
    } else {
      if (!value->is_object() || !value->contains(key)) return kNull;
      value = &value->at(key);
    }
  }
  return *value;
}

std::string field(const json& value) {
  if (value.is_null()) return "";
  return csv_field(value.is_string() ? value.get<std::string>() : value.dump());
}

// Appends the dotted paths of the leaves below `value` that are not in `paths` yet.
void add_leaves(const json& value, const std::string& path, std::vector<std::string>& paths) {
  if (!value.is_structured()) {
    if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
    return;
  }
  for (const auto& [key, below] : value.items()) {
    add_leaves(below, path.empty() ? key : fmt::format("{}.{}", path, key), paths);
  }
}

// Parts of a run, and of a document, whose columns are those that a file needs.
constexpr std::array kVarying{"match", "spans", "layouts", "notes", "parameters", "eval"};
constexpr std::array kOfDocument{"trace", "chunk", "accounting", "sample"};

// A run in which everything that may be absent is there: it names the columns of every file, so
// that they do not depend on what was measured.
RunResult complete_run() {
  RunResult run;
  PhaseFidelity phase;
  phase.has_error = true;
  phase.mass_upper.emplace();
  run.fidelity.emplace();
  run.fidelity->all = run.fidelity->prefill = run.fidelity->decode = phase;
  run.undecided = 0;
  return run;
}

// A run, and the document that it stands in.
struct Line {
  json run;
  std::size_t root = 0;
};

std::string text_of(const std::vector<json>& roots, const std::vector<Line>& lines) {
  // What a reader looks for first, the rest by name, then what varies from file to file.
  std::vector<std::string> columns{"policy", "label",     "method",  "budget",
                                   "class",  "footprint", "peak_kv", "peak_bytes.total"};
  json complete = figures_json(RunReport{}, complete_run());
  for (const char* varying : kVarying) complete.erase(varying);
  add_leaves(complete, "", columns);
  for (const char* varying : kVarying) {
    for (const Line& line : lines) {
      if (line.run.contains(varying)) add_leaves(line.run.at(varying), varying, columns);
    }
  }
  const std::size_t of_run = columns.size();
  for (const char* part : kOfDocument) {
    for (const json& root : roots) {
      if (root.contains(part)) add_leaves(root.at(part), part, columns);
    }
  }

  std::string text;
  for (const std::string& column : columns) text += csv_field(column) + ",";
  text.back() = '\n';
  for (const Line& line : lines) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      text += field(at_path(i < of_run ? line.run : roots[line.root], columns[i])) + ",";
    }
    text.back() = '\n';
  }
  return text;
}

}  // namespace

std::string to_csv(const RunReport& report) { return to_csv(std::span(&report, 1)); }

std::string to_csv(std::span<const RunReport> reports) {
  std::vector<json> roots;
  std::vector<Line> lines;
  for (const RunReport& report : reports) {
    for (const RunResult& run : report.runs)
      lines.push_back({figures_json(report, run), roots.size()});
    roots.push_back(root_json(report));
  }
  return text_of(roots, lines);
}

std::string csv_of_documents(std::span<const json> documents) {
  std::vector<json> roots;
  std::vector<Line> lines;
  for (json root : documents) {
    for (json& run : root.at("runs")) {
      for (const char* series : {"timeline", "per_layer", "per_head"}) run.erase(series);
      lines.push_back({std::move(run), roots.size()});
    }
    root.erase("runs");
    roots.push_back(std::move(root));
  }
  return text_of(roots, lines);
}

}  // namespace kvspan
