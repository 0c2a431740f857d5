// SPDX-License-Identifier: Apache-2.0
#include "gui/model/session.h"

#include <algorithm>
#include <system_error>

#include <nlohmann/json.hpp>

#include "gui/model/evaluation.h"
#include "gui/model/sweep_state.h"
#include "sim/base/text.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

// A member of the right type, or the fallback: a session is a convenience, never an obstacle.
template <class T>
T value(const json& object, const char* key, T fallback) {
  if (!object.is_object() || !object.contains(key)) return fallback;
  const json& found = object[key];
  if constexpr (std::is_same_v<T, bool>) {
    return found.is_boolean() ? found.get<bool>() : fallback;
  } else if constexpr (std::is_same_v<T, std::string>) {
    return found.is_string() ? found.get<std::string>() : fallback;
  } else {
    return found.is_number_integer() ? found.get<T>() : fallback;
  }
}

const json& part(const json& object, const char* key) {
  static const json nothing;
  return object.is_object() && object.contains(key) ? object[key] : nothing;
}

template <class T>
T named(const json& object, const char* key, const std::vector<std::string>& names, T fallback) {
  const auto found = std::find(names.begin(), names.end(), value(object, key, std::string()));
  return found == names.end() ? fallback : static_cast<T>(found - names.begin());
}

json rows_json(Rows rows) { return {{"begin", rows.begin}, {"end", rows.end}}; }

Rows rows_of(const json& object, Rows fallback) {
  return {value(object, "begin", fallback.begin), value(object, "end", fallback.end)};
}

std::string absolute_text(const std::filesystem::path& path) {
  std::error_code ignored;
  return valid_utf8(std::filesystem::absolute(path, ignored).string());
}

std::string file_text(const Result& result) { return absolute_text(result.path); }

json run_json(const ShownRun* shown) {
  if (shown == nullptr) return nullptr;
  return {{"file", file_text(*shown->result)}, {"policy", valid_utf8(shown->run().policy)}};
}

// The run that run_json() wrote; -1: it is not open.
int run_of(const json& written, const Document& document) {
  const auto& runs = document.runs();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (run_json(&runs[i]) == written) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

std::string file_of(const Result& result) {
  return (result.evaluation ? result.evaluation->path : result.path).string();
}

const std::vector<std::string>& quantity_names() {
  static const std::vector<std::string> names{"entries", "bytes", "percent", "mass"};
  return names;
}
const std::vector<std::string>& stack_names() {
  static const std::vector<std::string> names{"none", "layer", "head_class", "state"};
  return names;
}
const std::vector<std::string>& head_figure_names() {
  static const std::vector<std::string> names{"footprint", "peak_kv", "retained_mass"};
  return names;
}

json session_of(const Document& document, const std::vector<std::filesystem::path>& left_out) {
  json session{{"version", 1}, {"files", json::array()}, {"runs", json::array()}};
  const auto is_left_out = [&](const ResultPtr& result) {
    return std::find(left_out.begin(), left_out.end(), result->path) != left_out.end();
  };
  for (const ResultPtr& result : document.results()) {
    const std::string file = absolute_text(file_of(*result));
    const auto& files = session["files"];
    if (!is_left_out(result) && std::find(files.begin(), files.end(), file) == files.end())
      session["files"].push_back(file);
  }
  if (const SweepPtr& sweep = document.sweep().sweep())
    session["files"].push_back(absolute_text(sweep->path));
  for (const ShownRun& shown : document.runs()) {
    if (is_left_out(shown.result)) continue;
    json run = run_json(&shown);
    run["visible"] = shown.visible;
    run["colour"] = shown.colour;
    session["runs"].push_back(std::move(run));
  }
  session["current"] = run_json(document.current_run());
  session["baseline"] = run_json(document.baseline_run());
  session["zoom"] = rows_json(document.zoom());
  session["selection"] = rows_json(document.selection());
  const Focus focus = document.focus();
  session["focus"] = {{"layer", focus.layer}, {"head", focus.head}, {"token", focus.token}};
  const Display& display = document.display();
  session["display"] = {
      {"quantity", quantity_names()[static_cast<std::size_t>(display.quantity)]},
      {"log", display.log},
      {"stack", stack_names()[static_cast<std::size_t>(display.stack)]},
      {"head_figure", head_figure_names()[static_cast<std::size_t>(display.head_figure)]},
      {"attention", display.attention}};
  return session;
}

std::vector<std::filesystem::path> files_of(const json& session) {
  std::vector<std::filesystem::path> files;
  const json& list = part(session, "files");
  if (!list.is_array()) return files;
  for (const json& file : list) {
    if (file.is_string()) files.emplace_back(file.get<std::string>());
  }
  return files;
}

void restore(const json& session, Document& document) {
  const json& runs = part(session, "runs");
  for (std::size_t i = 0; runs.is_array() && i < runs.size(); ++i) {
    const int run =
        run_of({{"file", part(runs[i], "file")}, {"policy", part(runs[i], "policy")}}, document);
    if (run < 0) continue;
    const auto at = static_cast<std::size_t>(run);
    document.set_visible(at, value(runs[i], "visible", true));
    document.set_colour(
        at, std::clamp(value(runs[i], "colour", document.runs()[at].colour), 0, 1 << 16));
  }
  document.set_current(run_of(part(session, "current"), document));
  document.set_baseline(run_of(part(session, "baseline"), document));
  document.set_zoom(rows_of(part(session, "zoom"), document.zoom()));
  document.set_selection(rows_of(part(session, "selection"), document.selection()));
  const json& focus = part(session, "focus");
  document.set_focus({value(focus, "layer", -1), value(focus, "head", -1),
                      value(focus, "token", std::int64_t{-1})});
  const json& shown = part(session, "display");
  Display display = document.display();
  display.quantity = named(shown, "quantity", quantity_names(), display.quantity);
  display.log = value(shown, "log", display.log);
  display.stack = named(shown, "stack", stack_names(), display.stack);
  display.head_figure = named(shown, "head_figure", head_figure_names(), display.head_figure);
  display.attention = value(shown, "attention", display.attention);
  document.set_display(display);
}

}  // namespace kvspan::gui
