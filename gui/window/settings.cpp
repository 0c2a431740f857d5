// SPDX-License-Identifier: Apache-2.0
#include "gui/window/settings.h"

#include <QDoubleSpinBox>
#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "gui/model/session.h"
#include "gui/model/sweep_state.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"

namespace kvspan::gui {

std::pair<std::int64_t, std::int64_t> parse_pair(const std::string& text, char between,
                                                 const std::string& what,
                                                 const std::string& example) {
  std::int64_t first = 0;
  std::int64_t second = 0;
  const auto middle = std::min(text.find(between), text.size());
  const auto number = [](std::string_view digits, std::int64_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && value >= 0;
  };
  const std::string_view whole = text;
  if (middle == text.size() || !number(whole.substr(0, middle), first) ||
      !number(whole.substr(middle + 1), second) || second == 0) {
    throw ConfigError(fmt::format("{}: found '{}', expected {}", what, text, example));
  }
  return {first, second};
}

namespace {

Rows parse_rows(const std::string& text, const std::string& what) {
  if (!text.empty() && text.find_first_not_of("0123456789") == text.npos && text.size() < 12) {
    return {std::stoll(text), std::stoll(text) + 1};
  }
  const auto [begin, end] = parse_pair(text, ':', what, "a row, or BEGIN:END with BEGIN < END");
  if (begin >= end) {
    throw ConfigError(
        fmt::format("{}: found '{}', expected BEGIN:END with BEGIN < END", what, text));
  }
  return {begin, end};
}

template <class T>
void set_named(const std::string& text, const std::vector<std::string>& names,
               const std::string& what, T& value) {
  if (text.empty()) return;
  const auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) {
    throw ConfigError(fmt::format("{}: found '{}'; {}", what, text, nearest_hint(text, names)));
  }
  value = static_cast<T>(found - names.begin());
}

// The first run of that label or canonical spec, or whose label begins so.
int find_run(const Document& document, const std::string& text) {
  std::vector<std::string> labels;
  const auto& runs = document.runs();
  for (const ShownRun& shown : runs) labels.push_back(shown.run().label);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (labels[i] == text || runs[i].run().policy == text) return static_cast<int>(i);
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (labels[i].starts_with(text)) return static_cast<int>(i);
  }
  throw ConfigError(fmt::format("no run is called '{}'; {}", text, nearest_hint(text, labels)));
}

}  // namespace

void set_threshold(const Settings& s, const QWidget& parent) {
  auto* box = parent.findChild<QDoubleSpinBox*>("threshold");
  if (s.threshold && box != nullptr) box->setValue(*s.threshold);
}

std::optional<std::filesystem::path> sweep_folder_of(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return path;
  if (path.filename() == "sweep.json") return path.parent_path();
  return std::nullopt;
}

namespace {

// Of a sweep that is open.
void apply(const Settings& s, SweepState& state) {
  if (state.sweep() == nullptr) {
    if (s.where.empty() && s.matrix.empty()) return;
    throw ConfigError("--where and --matrix need the folder of a sweep");
  }
  SweepFilter filter = state.filter();
  for (const std::string& text : s.where) apply_where(text, *state.sweep(), filter);
  state.set_filter(filter);
  if (!s.matrix.empty()) state.set_axes(parse_axes(s.matrix, *state.sweep()));
  if (s.threshold) state.set_threshold(*s.threshold / 100);
}

}  // namespace

void apply(const Settings& s, Document& document) {
  apply(s, document.sweep());
  Display display = document.display();
  set_named(s.quantity, quantity_names(), "--quantity", display.quantity);
  set_named(s.stack, stack_names(), "--stack", display.stack);
  set_named(s.head_figure, head_figure_names(), "--heads", display.head_figure);
  display.log = display.log || s.log;
  display.attention = display.attention || s.attention;
  display.beside = display.beside || s.beside;
  document.set_display(display);
  if (!s.run.empty()) document.set_current(find_run(document, s.run));
  if (!s.baseline.empty()) document.set_baseline(find_run(document, s.baseline));
  if (!s.only.empty()) {
    std::vector<int> shown;
    for (const std::string& text : s.only) shown.push_back(find_run(document, text));
    for (std::size_t i = 0; i < document.runs().size(); ++i) {
      document.set_visible(
          i, std::find(shown.begin(), shown.end(), static_cast<int>(i)) != shown.end());
    }
  }
  const auto rows_of = [&](const std::string& text, const char* what) {
    const Rows rows = parse_rows(text, what);
    if (rows.end > document.rows()) {
      throw ConfigError(fmt::format("{}: found '{}', the longest trace has the rows 0 to {}", what,
                                    text, document.rows() - 1));
    }
    return rows;
  };
  if (!s.zoom.empty()) document.set_zoom(rows_of(s.zoom, "--zoom"));
  if (!s.rows.empty()) document.set_selection(rows_of(s.rows, "--rows"));
  if (const ShownRun* shown = document.current_run()) {
    const auto check = [](const char* what, std::int64_t found, std::int64_t count) {
      if (found < count) return;
      throw ConfigError(
          fmt::format("{}: found {}, the current run has 0 to {}", what, found, count - 1));
    };
    check("--layer", s.layer, shown->result->trace.layers());
    check("--head", s.head, std::max(1, shown->run().heads));
    check("--token", s.token, shown->result->trace.tokens);
  }
  if (s.layer >= 0 || s.head >= 0 || s.token >= 0) document.set_focus({s.layer, s.head, s.token});
}

}  // namespace kvspan::gui
