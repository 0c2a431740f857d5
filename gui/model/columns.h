// SPDX-License-Identifier: Apache-2.0
// Memory over rows, reduced to what a chart has room for: lines and differences at pixel columns,
// and the same as numbers.
#pragma once

#include <QPointF>
#include <QString>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

// ---- Units --------------------------------------------------------------------------------------

// "1.50 MiB", "12 345", "41.3 %"; with a sign, if a difference; a dash for NaN.
[[nodiscard]] QString value_text(Quantity quantity, double value);
[[nodiscard]] QString difference_text(Quantity quantity, double value);
// "row 530" or "rows 512 to 699".
[[nodiscard]] QString rows_text(Rows rows);

// ---- Lines --------------------------------------------------------------------------------------

// A run in a quantity: entries, bytes, or shares (1 is all of a full cache, or all attention).
struct Measure {
  SeriesPtr series;  // null: the result does not say
  double scale = 1;
  [[nodiscard]] double at(RowIndex row) const { return series->at(row) * scale; }
};
[[nodiscard]] Measure measure_of(const ShownRun& shown, Quantity quantity);

// Rows on columns of pixels. A column has at least one row; where many rows share one, its ends lie
// on the levels of a timeline (half a pixel off at most), so that only these are read.
class Columns {
 public:
  // REQUIRES: rows not empty, pixels > 0.
  Columns(Rows rows, int pixels);
  [[nodiscard]] int count() const { return count_; }  // at most `pixels`, and one a row
  [[nodiscard]] Rows at(int column) const { return {edge(column), edge(column + 1)}; }

 private:
  [[nodiscard]] RowIndex edge(int column) const;
  Rows rows_;
  int count_ = 0;
  RowIndex unit_ = 1;
};

// A line as at most two points (row, value) a column: a row that has its own column is flat from
// its beginning to its end, more rows are their smallest and largest value, in the order that makes
// the shorter line. What was not measured is passed over.
[[nodiscard]] std::vector<QPointF> sample_line(const Measure& measure, const Columns& columns);

// a - b in every row that both have. Building reads all rows once; of more than 2^22 none, and
// extremes are then those of a sample. Errors: Interrupted when `cancelled` says so.
[[nodiscard]] SeriesPtr series_of_difference(Measure a, Measure b,
                                             const std::function<bool()>& cancelled);

// ---- Numbers ------------------------------------------------------------------------------------

inline constexpr int kCsvRows = 4096;

// Labels; where runs have the same, with what tells them apart: file, chunk, folder.
[[nodiscard]] std::vector<QString> run_names(const std::vector<ShownRun>& runs);
[[nodiscard]] std::vector<QString> run_names(const Document& document);

// The zoom as CSV: `row`, and a column a visible run, or, stacked, a column a part of the current
// one. Up to kCsvRows rows are all listed; of more, cut into kCsvRows pieces, the row of each where
// the current run is largest. Shares are in [0, 1].
[[nodiscard]] std::string memory_csv(const Document& document);
// Likewise row, baseline, current, difference.
[[nodiscard]] std::string difference_csv(const Document& document);

}  // namespace kvspan::gui
