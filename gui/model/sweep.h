// SPDX-License-Identifier: Apache-2.0
// A sweep's folder as views read it: what its cells differ in and what was measured, in columns; an
// immutable value, as results are.
#pragma once

#include <QString>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "gui/model/simulation.h"
#include "sim/sweep/curves.h"

namespace kvspan::gui {

struct Sweep {
  enum Parameter : std::uint8_t {
    trace,
    method,
    budget,
    chunk,
    prompt,
    evict_at,
    prefill,
    layout,
    kv_bytes,
    seed,
    status,
    parameter_count
  };
  // Of one parameter: its distinct values, sorted where they are numbers, else as the sweep has
  // them.
  struct Values {
    std::vector<std::string> words;     // as cells.csv has them
    std::vector<QString> texts;         // for people: "one pass"
    std::vector<std::int32_t> of_cell;  // index into both
  };
  enum class Unit : std::uint8_t { share, bytes };
  struct Figure {
    std::string key;  // its column in cells.csv
    QString title, help;
    Unit unit = Unit::share;
    bool more_is_better = false;
    std::vector<double> of_cell;  // NaN: none
  };

  std::filesystem::path path;
  sweep::SweepFolder folder;
  std::array<Values, parameter_count> parameters;
  std::vector<Figure> figures;                             // those that a cell has
  std::unordered_map<std::uint64_t, std::size_t> cell_of;  // by id
  sweep::SweepReport report;                               // at 90 %

  [[nodiscard]] std::size_t cells() const { return folder.grid.cells.size(); }
  [[nodiscard]] const QString& text(Parameter parameter, std::size_t cell) const {
    const Values& values = parameters[parameter];
    return values.texts[static_cast<std::size_t>(values.of_cell[cell])];
  }
  [[nodiscard]] bool varies(Parameter parameter) const {
    return parameters[parameter].words.size() > 1;
  }
};
using SweepPtr = std::shared_ptr<const Sweep>;

// Errors: ConfigError when it is no folder of a sweep.
[[nodiscard]] SweepPtr open_sweep_folder(const std::filesystem::path& path);

[[nodiscard]] const std::vector<std::string>& sweep_parameter_names();  // in their order
[[nodiscard]] QString title_of(Sweep::Parameter parameter);
// "54.3 %", "1.94 MiB"; a dash for none.
[[nodiscard]] QString figure_text(Sweep::Unit unit, double value);
// What a cell is, in a line, and why it is not done if it is not.
[[nodiscard]] QString cell_text(const Sweep& sweep, std::size_t cell);
// Its figures, in a line.
[[nodiscard]] QString figures_text(const Sweep& sweep, std::size_t cell);
// Its specification with every default, and the notes of its run; empty where it is not done.
[[nodiscard]] QString notes_text(const Sweep& sweep, std::size_t cell);

// Which cells are looked at.
struct SweepFilter {
  // Of each parameter the values that are wanted; nullopt: all of them.
  std::array<std::optional<std::set<std::int32_t>>, Sweep::parameter_count> wanted;
  [[nodiscard]] bool takes(Sweep::Parameter parameter, std::int32_t value) const {
    const auto& values = wanted[parameter];
    return !values || values->contains(value);
  }
  [[nodiscard]] bool takes(const Sweep& sweep, std::size_t cell) const;
  bool operator==(const SweepFilter&) const = default;
};
// Only methods in whose names one of the words occurs; no word: all of them.
void filter_methods(SweepFilter& filter, const Sweep& sweep, const QString& words);
// "chunk=512", "budget=10%,20%", "method=snapkv,h2o" (as above). Errors: ConfigError.
void apply_where(const std::string& text, const Sweep& sweep, SweepFilter& filter);
// What a caption says of all that is shown: what the filter lets pass, and whether attention is an
// estimate: "chunk 512, budget 10 % or 20 %"; empty: everything, measured.
[[nodiscard]] QString scope_text(const SweepFilter& filter, const Sweep& sweep);

// The run of a cell as a simulation: its trace where it is found now, or as the sweep names it.
[[nodiscard]] SimulationRequest request_of(const Sweep& sweep, std::size_t cell);

}  // namespace kvspan::gui
