// SPDX-License-Identifier: Apache-2.0
// What the command line says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gui/model/document.h"

class QWidget;

namespace kvspan::gui {

struct Settings {
  std::vector<std::string> files;
  std::vector<std::string> exports, views;
  std::string export_all;
  std::string size;  // empty: what each view has room in
  double scale = 1;
  std::string rows, zoom;
  std::string run, baseline;
  std::vector<std::string> only;
  std::vector<std::string> where;   // of a sweep's cells
  std::string matrix;               // of a sweep: rows, columns, figure
  std::optional<double> threshold;  // percent
  std::string quantity, stack, head_figure;
  bool log = false, attention = false, beside = false, dark = false, new_session = false;
  int layer = -1, head = -1;
  std::int64_t token = -1;
  [[nodiscard]] bool exporting() const { return !exports.empty() || !export_all.empty(); }
};

// "1280x800" as a pair of whole numbers, the second one not 0.
// Errors: ConfigError naming `what` and an `example`.
[[nodiscard]] std::pair<std::int64_t, std::int64_t> parse_pair(const std::string& text,
                                                               char between,
                                                               const std::string& what,
                                                               const std::string& example);
// Whether a path is a sweep's folder, or the sweep.json in one; its folder.
[[nodiscard]] std::optional<std::filesystem::path> sweep_folder_of(
    const std::filesystem::path& path);
// Shows what was asked for. Errors: ConfigError where the open results do not have it.
void apply(const Settings& settings, Document& document);

// Sets the threshold of the trade-off in `parent`, if one was given and the view is there.
void set_threshold(const Settings& settings, const QWidget& parent);

}  // namespace kvspan::gui
