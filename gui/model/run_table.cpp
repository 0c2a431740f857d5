// SPDX-License-Identifier: Apache-2.0
#include "gui/model/run_table.h"

#include <limits>

#include "gui/model/columns.h"
#include "gui/model/numbers.h"

namespace kvspan::gui {
namespace {

double or_none(std::optional<double> value) { return value.value_or(kNone); }

std::optional<double> output_error(const Run& run) {
  const auto decode = figure(run, "fidelity.decode.output_error.mean");
  return decode ? decode : figure(run, "fidelity.all.output_error.mean");
}

double value_at(const ShownRun& shown, Quantity quantity, RowIndex row) {
  const Measure measure = measure_of(shown, quantity);
  const bool there = measure.series != nullptr && row < measure.series->rows();
  return there ? measure.at(row) : kNone;
}

// Exact; shares stay shares.
double cell_number(const Document& document, const ShownRun& shown, int column) {
  const Quantity quantity = document.display().quantity;
  const Rows rows = document.selection();
  switch (column) {
    case RunTable::footprint:
      return or_none(figure(shown.run(), "footprint"));
    case RunTable::peak_kv:
      return or_none(figure(shown.run(), "peak_kv"));
    case RunTable::peak_memory: {
      if (const auto total = figure(shown.run(), "peak_bytes.total")) return *total;
      const SeriesPtr& bytes = shown.run().bytes;
      return bytes == nullptr ? kNone : bytes->over(0, bytes->rows()).high;
    }
    case RunTable::retained:
      return or_none(retained_mass(shown.run()));
    case RunTable::error:
      return or_none(output_error(shown.run()));
    case RunTable::at_begin:
      return rows.empty() ? kNone : value_at(shown, quantity, rows.begin);
    case RunTable::at_end:
      return rows.empty() ? kNone : value_at(shown, quantity, rows.end - 1);
    case RunTable::delta:
      return rows.empty()
                 ? kNone
                 : value_at(shown, quantity, rows.end - 1) - value_at(shown, quantity, rows.begin);
    default:
      return kNone;
  }
}

QString text_of(double value, int column, Quantity quantity) {
  switch (column) {
    case RunTable::peak_memory:
      return value_text(Quantity::bytes, value);
    case RunTable::at_begin:
    case RunTable::at_end:
      return value_text(quantity, value);
    case RunTable::delta:
      return difference_text(quantity, value);
    default:
      return percent_text(value,
                          column == RunTable::footprint || column == RunTable::peak_kv ? 1 : 2);
  }
}

QString tool_tip(const ShownRun& shown) {
  QString text = QString::fromStdString(shown.run().policy) + "\n" +
                 QString::fromStdString(shown.run().klass) + "\n" +
                 QString::fromStdString(shown.result->path.string());
  for (const std::string& note : shown.run().notes) text += "\n- " + QString::fromStdString(note);
  return text;
}

}  // namespace

RunTable::RunTable(Document& document, QObject* parent)
    : QAbstractTableModel(parent),
      document_(document),
      rows_(static_cast<int>(document.runs().size())),
      names_(run_names(document)) {
  connect(&document, &Document::runs_changed, this, [this] {
    names_ = run_names(document_);
    const auto rows = static_cast<int>(document_.runs().size());
    if (rows == rows_) {
      if (rows > 0) emit dataChanged(index(0, 0), index(rows - 1, column_count - 1));
      return;
    }
    beginResetModel();
    rows_ = rows;
    endResetModel();
  });
  const auto refresh = [this] {
    if (rows_ > 0) emit dataChanged(index(0, 0), index(rows_ - 1, column_count - 1));
  };
  connect(&document, &Document::current_changed, this, refresh);
  connect(&document, &Document::selection_changed, this, refresh);
  connect(&document, &Document::display_changed, this, [this, refresh] {
    refresh();
    emit headerDataChanged(Qt::Horizontal, at_begin, delta);
  });
}

int RunTable::rowCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : rows_; }

int RunTable::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : column_count;
}

QVariant RunTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const ShownRun& shown = document_.runs()[static_cast<std::size_t>(index.row())];
  const int column = index.column();
  switch (role) {
    case Qt::DisplayRole:
    case Qt::EditRole: {
      if (column == label) {
        return role == Qt::EditRole ? QString::fromStdString(shown.run().policy)
                                    : names_[static_cast<std::size_t>(index.row())];
      }
      if (column == file) {
        return QString::fromStdString(shown.result->path.filename().string());
      }
      const double value = cell_number(document_, shown, column);
      if (role == Qt::DisplayRole && column == retained) return retained_text(shown.run());
      if (role == Qt::DisplayRole) return text_of(value, column, document_.display().quantity);
      return value;
    }
    case Qt::ToolTipRole:
      return tip_text(tool_tip(shown));
    case Qt::CheckStateRole:
      return column == label ? QVariant(shown.visible ? Qt::Checked : Qt::Unchecked) : QVariant();
    case Qt::TextAlignmentRole:
      return int(column == label || column == file ? Qt::AlignLeft | Qt::AlignVCenter
                                                   : Qt::AlignRight | Qt::AlignVCenter);
    case slot_role:
      return shown.colour;
    case measured_role:
      return !shown.run().replayed.empty();
    case current_role:
      return index.row() == document_.current();
    case baseline_role:
      return index.row() == document_.baseline();
    default:
      return {};
  }
}

QVariant RunTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal || section < 0 || section >= column_count) return {};
  struct Head {
    const char* name;
    const char* help;
  };
  static constexpr Head kHeads[column_count] = {
      {"policy", "Runs; the box shows or hides a run in charts"},
      {"footprint", "KV footprint: entries held, summed over all rows; full = 100 %"},
      {"peak KV", "The most entries held in any row"},
      {"peak memory", "The most bytes at one instant, KV and overhead"},
      {"retained",
       "Attention that decode rows still reach of the full cache's (mean); all rows "
       "where none was decoded. A proxy, not accuracy. Of a score trace: from what is sure to what "
       "is possible; where two of them overlap, the trace does not tell which is better"},
      {"error", "Relative output error (mean), of the same rows"},
      {"at begin", "In the first selected row, in the quantity of the charts"},
      {"at end", "In the last selected row"},
      {"delta", "Last selected row less the first"},
      {"file", "The result that the run is of"}};
  if (role == Qt::DisplayRole) return QString(kHeads[section].name);
  if (role == Qt::ToolTipRole) return QString(kHeads[section].help);
  return {};
}

Qt::ItemFlags RunTable::flags(const QModelIndex& index) const {
  if (!index.isValid()) return Qt::NoItemFlags;
  const Qt::ItemFlags flags = QAbstractTableModel::flags(index);
  return index.column() == label ? flags | Qt::ItemIsUserCheckable : flags;
}

bool RunTable::setData(const QModelIndex& index, const QVariant& value, int role) {
  if (!index.isValid() || role != Qt::CheckStateRole || index.column() != label) return false;
  document_.set_visible(static_cast<std::size_t>(index.row()), value.toInt() == Qt::Checked);
  return true;
}

}  // namespace kvspan::gui
