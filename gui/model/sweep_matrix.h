// SPDX-License-Identifier: Apache-2.0
// Two parameters of a sweep against each other: a figure's mean over all that differs besides.
#pragma once

#include <QString>
#include <limits>
#include <string>
#include <vector>

#include "gui/model/sweep.h"

namespace kvspan::gui {

// Beside the figures of cells: the critical footprint, of a method on a trace in a setting.
inline constexpr const char* kCriticalKey = "critical_footprint";

struct MatrixAxes {
  Sweep::Parameter rows = Sweep::method, columns = Sweep::budget;
  std::string figure = "retained_attention_mean_share";  // its key, or kCriticalKey
  bool operator==(const MatrixAxes&) const = default;
};
// Methods against the first of budget, chunk, trace, prompt that the sweep turns.
[[nodiscard]] MatrixAxes default_axes(const Sweep& sweep);
// "method,chunk,critical_footprint": rows, columns and, if given, the figure. Errors: ConfigError.
[[nodiscard]] MatrixAxes parse_axes(const std::string& text, const Sweep& sweep);

struct SweepMatrix {
  struct Cell {
    double value = std::numeric_limits<double>::quiet_NaN();  // mean; NaN: nothing was measured
    double low = 0, high = 0;
    int count = 0;
    int first = -1;  // cell of the sweep; -1: none, or a critical footprint, which is of many
    // Critical footprints that lie outside of what was measured: less than, more than `value`.
    bool below = false, above = false;
  };
  // Indices into the values of the parameters. Methods are sorted by their mean, best first.
  std::vector<std::int32_t> rows, columns;
  std::vector<Cell> cells;  // [rows, columns]
  QString title;            // of the figure
  Sweep::Unit unit = Sweep::Unit::share;
  bool more_is_better = false;
  [[nodiscard]] const Cell& at(std::size_t row, std::size_t column) const {
    return cells[row * columns.size() + column];
  }
};

// Of the cells that the filter takes; critical footprints are the report's, of all budgets.
[[nodiscard]] SweepMatrix make_matrix(const Sweep& sweep, const sweep::SweepReport& report,
                                      const SweepFilter& filter, const MatrixAxes& axes);

// "54.3 %", "< 31.2 %".
[[nodiscard]] QString value_text(const SweepMatrix& matrix, const SweepMatrix::Cell& cell);
// A line of names of columns, then a line a row: exact shares or bytes, empty where there is none.
[[nodiscard]] std::string matrix_csv(const Sweep& sweep, const SweepMatrix& matrix,
                                     const MatrixAxes& axes);

}  // namespace kvspan::gui
