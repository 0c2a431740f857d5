// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep_matrix.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "gui/model/csv.h"
#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan::gui {
namespace {

// What is known at one place: a cell of the sweep, or a curve.
struct Item {
  std::int32_t row = 0, column = 0;
  double value = 0;
  int cell = -1;
  sweep::Critical::Kind kind = sweep::Critical::Kind::exact;
};

std::vector<Item> items_of_cells(const Sweep& sweep, const SweepFilter& filter,
                                 const MatrixAxes& axes, const Sweep::Figure& figure) {
  std::vector<Item> items;
  for (std::size_t c = 0; c < sweep.cells(); ++c) {
    if (std::isnan(figure.of_cell[c]) || !filter.takes(sweep, c)) continue;
    items.push_back({sweep.parameters[axes.rows].of_cell[c],
                     sweep.parameters[axes.columns].of_cell[c], figure.of_cell[c],
                     static_cast<int>(c)});
  }
  return items;
}

// A curve has no budget: it stands where its first cell does in everything else.
std::vector<Item> items_of_curves(const Sweep& sweep, const sweep::SweepReport& report,
                                  SweepFilter filter, const MatrixAxes& axes) {
  filter.wanted[Sweep::budget].reset();
  filter.wanted[Sweep::status].reset();
  std::vector<Item> items;
  for (const sweep::Curve& curve : report.curves) {
    const std::size_t cell = sweep.cell_of.at(curve.points.front().cell);
    if (curve.footprint.kind == sweep::Critical::Kind::unknown || !filter.takes(sweep, cell))
      continue;
    items.push_back({sweep.parameters[axes.rows].of_cell[cell],
                     sweep.parameters[axes.columns].of_cell[cell], curve.footprint.x, -1,
                     curve.footprint.kind});
  }
  return items;
}

std::vector<std::int32_t> values_of(const std::vector<Item>& items,
                                    std::int32_t Item::*coordinate) {
  std::set<std::int32_t> found;
  for (const Item& item : items) found.insert(item.*coordinate);
  return {found.begin(), found.end()};
}

void add(const Item& item, SweepMatrix::Cell& cell) {
  if (cell.count == 0) {
    cell.value = 0;
    cell.low = cell.high = item.value;
    cell.first = item.cell;
  }
  ++cell.count;
  cell.value += (item.value - cell.value) / cell.count;
  cell.low = std::min(cell.low, item.value);
  cell.high = std::max(cell.high, item.value);
  cell.below = cell.below || item.kind == sweep::Critical::Kind::below;
  cell.above = cell.above || item.kind == sweep::Critical::Kind::above;
}

// Best first; of what never gets there the value says little, so it comes last.
void sort_rows(SweepMatrix& matrix) {
  std::map<std::int32_t, std::pair<bool, double>> order;
  for (std::size_t r = 0; r < matrix.rows.size(); ++r) {
    double sum = 0;
    int count = 0;
    bool above = false;
    for (std::size_t c = 0; c < matrix.columns.size(); ++c) {
      const SweepMatrix::Cell& cell = matrix.at(r, c);
      if (cell.count == 0) continue;
      sum += cell.value;
      ++count;
      above = above || cell.above;
    }
    order[matrix.rows[r]] = {above, (matrix.more_is_better ? -sum : sum) / std::max(count, 1)};
  }
  const std::vector<std::int32_t> before = matrix.rows;
  std::stable_sort(matrix.rows.begin(), matrix.rows.end(),
                   [&](std::int32_t a, std::int32_t b) { return order[a] < order[b]; });
  std::vector<SweepMatrix::Cell> cells;
  for (const std::int32_t row : matrix.rows) {
    const auto at = static_cast<std::size_t>(std::lower_bound(before.begin(), before.end(), row) -
                                             before.begin());
    for (std::size_t c = 0; c < matrix.columns.size(); ++c) cells.push_back(matrix.at(at, c));
  }
  matrix.cells = std::move(cells);
}

Sweep::Parameter parameter_of(const std::string& name) {
  const auto& names = sweep_parameter_names();
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end())
    throw ConfigError(fmt::format("--matrix: found {}, expected ROWS,COLUMNS[,FIGURE]; {}",
                                  in_quotes(name), nearest_hint(name, names)));
  return static_cast<Sweep::Parameter>(at - names.begin());
}

const Sweep::Figure* figure_of(const Sweep& sweep, const std::string& key) {
  const auto at = std::find_if(sweep.figures.begin(), sweep.figures.end(),
                               [&](const Sweep::Figure& figure) { return figure.key == key; });
  return at == sweep.figures.end() ? nullptr : &*at;
}

}  // namespace

MatrixAxes default_axes(const Sweep& sweep) {
  MatrixAxes axes;
  for (const Sweep::Parameter parameter :
       {Sweep::budget, Sweep::chunk, Sweep::trace, Sweep::prompt}) {
    if (!sweep.varies(parameter)) continue;
    axes.columns = parameter;
    break;
  }
  if (figure_of(sweep, axes.figure) == nullptr && !sweep.figures.empty())
    axes.figure = sweep.figures.front().key;
  return axes;
}

MatrixAxes parse_axes(const std::string& text, const Sweep& sweep) {
  const std::size_t first = std::min(text.find(','), text.size());
  const std::size_t second = std::min(text.find(',', first + 1), text.size());
  MatrixAxes axes = default_axes(sweep);
  axes.rows = parameter_of(text.substr(0, first));
  axes.columns =
      parameter_of(first == text.size() ? "" : text.substr(first + 1, second - first - 1));
  if (axes.rows == axes.columns)
    throw ConfigError(
        fmt::format("--matrix: rows and columns are both {}", sweep_parameter_names()[axes.rows]));
  if (second == text.size()) return axes;
  axes.figure = text.substr(second + 1);
  if (axes.figure == kCriticalKey || figure_of(sweep, axes.figure) != nullptr) return axes;
  std::vector<std::string> known{kCriticalKey};
  for (const Sweep::Figure& figure : sweep.figures) known.push_back(figure.key);
  throw ConfigError(fmt::format("--matrix: found the figure {}; {}", in_quotes(axes.figure),
                                nearest_hint(axes.figure, known)));
}

SweepMatrix make_matrix(const Sweep& sweep, const sweep::SweepReport& report,
                        const SweepFilter& filter, const MatrixAxes& axes) {
  SweepMatrix matrix;
  std::vector<Item> items;
  if (axes.figure == kCriticalKey) {
    items = items_of_curves(sweep, report, filter, axes);
    matrix.title = QString("critical footprint at %1").arg(percent_text(report.options.least, 0));
  } else if (const Sweep::Figure* figure = figure_of(sweep, axes.figure)) {
    items = items_of_cells(sweep, filter, axes, *figure);
    matrix.title = figure->title;
    matrix.unit = figure->unit;
    matrix.more_is_better = figure->more_is_better;
  }
  matrix.rows = values_of(items, &Item::row);
  matrix.columns = values_of(items, &Item::column);
  matrix.cells.resize(matrix.rows.size() * matrix.columns.size());
  const auto place = [](const std::vector<std::int32_t>& values, std::int32_t value) {
    return static_cast<std::size_t>(std::lower_bound(values.begin(), values.end(), value) -
                                    values.begin());
  };
  for (const Item& item : items) {
    add(item, matrix.cells[place(matrix.rows, item.row) * matrix.columns.size() +
                           place(matrix.columns, item.column)]);
  }
  if (axes.rows == Sweep::method) sort_rows(matrix);
  return matrix;
}

QString value_text(const SweepMatrix& matrix, const SweepMatrix::Cell& cell) {
  const QString sign = cell.count == 0 ? "" : cell.above ? "> " : cell.below ? "< " : "";
  return sign + figure_text(matrix.unit, cell.value);
}

std::string matrix_csv(const Sweep& sweep, const SweepMatrix& matrix, const MatrixAxes& axes) {
  const auto word = [&](Sweep::Parameter parameter, std::int32_t value) {
    return csv_field(
        std::string_view(sweep.parameters[parameter].words[static_cast<std::size_t>(value)]));
  };
  std::vector<std::string> fields{csv_field(std::string_view(sweep_parameter_names()[axes.rows]))};
  for (const std::int32_t column : matrix.columns) fields.push_back(word(axes.columns, column));
  std::string text = csv_line(fields);
  for (std::size_t r = 0; r < matrix.rows.size(); ++r) {
    fields = {word(axes.rows, matrix.rows[r])};
    for (std::size_t c = 0; c < matrix.columns.size(); ++c)
      fields.push_back(csv_field(matrix.at(r, c).value));
    text += csv_line(fields);
  }
  return text;
}

}  // namespace kvspan::gui
