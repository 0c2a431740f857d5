// SPDX-License-Identifier: Apache-2.0
#include "gui/model/csv.h"

#include <QAbstractItemModel>
#include <QVariant>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::gui {

std::string csv_field(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }

std::string csv_field(std::int64_t value) { return fmt::format("{}", value); }

std::string csv_line(const std::vector<std::string>& fields) {
  std::string line;
  for (const std::string& field : fields) line += field + ',';
  if (line.empty()) return "\n";
  line.back() = '\n';
  return line;
}

std::vector<std::vector<std::string>> parse_csv(std::string_view text) {
  std::vector<std::vector<std::string>> lines;
  bool quoted = false;
  bool fresh = true;  // the next character begins a line
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (fresh) lines.push_back({""});
    fresh = false;
    std::string& field = lines.back().back();
    const char c = text[i];
    if (quoted && c == '"' && i + 1 < text.size() && text[i + 1] == '"') {
      field += text[++i];
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && c == ',') {
      lines.back().emplace_back();
    } else if (!quoted && c == '\n') {
      if (!field.empty() && field.back() == '\r') field.pop_back();
      fresh = true;
    } else {
      field += c;
    }
  }
  if (quoted) throw ConfigError("CSV: a quote is not closed");
  return lines;
}

std::string csv_of(const QAbstractItemModel& model) {
  const int columns = model.columnCount();
  std::vector<std::string> fields;
  for (int c = 0; c < columns; ++c) {
    fields.push_back(csv_field(model.headerData(c, Qt::Horizontal).toString().toStdString()));
  }
  std::string text = csv_line(fields);
  for (int r = 0; r < model.rowCount(); ++r) {
    fields.clear();
    for (int c = 0; c < columns; ++c) {
      const QVariant value = model.index(r, c).data(Qt::EditRole);
      switch (value.typeId()) {
        case QMetaType::Double:
          fields.push_back(csv_field(value.toDouble()));
          break;
        case QMetaType::Int:
        case QMetaType::LongLong:
          fields.push_back(csv_field(static_cast<std::int64_t>(value.toLongLong())));
          break;
        default:
          fields.push_back(csv_field(std::string_view(value.toString().toStdString())));
      }
    }
    text += csv_line(fields);
  }
  return text;
}

}  // namespace kvspan::gui
