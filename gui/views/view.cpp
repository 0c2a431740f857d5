// SPDX-License-Identifier: Apache-2.0
#include "gui/views/view.h"

#include <QBuffer>
#include <QFileInfo>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QImage>
#include <QLabel>
#include <QLayout>
#include <QSvgGenerator>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "gui/paint/theme.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {

QString View::hovered_text() const {
  const auto* readout = findChild<QLabel*>("readout");
  return readout == nullptr ? QString() : readout->text();
}

void View::draw(QPainter& painter, const QSize& size) {
  const QSize before = this->size();
  resize(size);
  render(&painter, QPoint(), QRegion(), QWidget::DrawWindowBackground | QWidget::DrawChildren);
  resize(before);
}

void View::draw_without(QWidget& controls, QPainter& painter, const QSize& size) {
  controls.hide();
  layout()->activate();
  View::draw(painter, size);
  controls.show();
  layout()->activate();
}

void set_up_rows(QTableView& table) {
  table.setSelectionBehavior(QAbstractItemView::SelectRows);
  table.setSelectionMode(QAbstractItemView::SingleSelection);
  table.setAlternatingRowColors(true);
  table.setShowGrid(false);
  table.setFrameShape(QFrame::NoFrame);
  table.verticalHeader()->hide();
}

QVBoxLayout* rows_of(QWidget& view) {
  auto* rows = new QVBoxLayout(&view);
  rows->setContentsMargins(6, 4, 6, 4);
  rows->setSpacing(4);
  return rows;
}

QHBoxLayout* row_in(QWidget& part) {
  auto* row = new QHBoxLayout(&part);
  row->setContentsMargins(0, 0, 0, 0);
  return row;
}

QLabel* text_line(QWidget* parent, const char* name) {
  auto* line = new QLabel(parent);
  line->setTextFormat(Qt::PlainText);
  line->setObjectName(name);
  line->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
  return line;
}

QSize whole_size(const QTableView& table) {
  const QAbstractItemView& cells = table;  // what QTableView hides
  int width = 2 * table.frameWidth();
  for (int c = 0; c < table.model()->columnCount(); ++c) {
    if (table.isColumnHidden(c)) continue;
    const QHeaderView& header = *table.horizontalHeader();
    const bool stretched = header.sectionResizeMode(c) == QHeaderView::Stretch ||
                           (header.stretchLastSection() && c + 1 == table.model()->columnCount());
    width += stretched ? std::max(cells.sizeHintForColumn(c), header.sectionSizeHint(c)) + 8
                       : table.columnWidth(c);
  }
  const int height = table.horizontalHeader()->sizeHint().height() +
                     table.verticalHeader()->length() + 2 * table.frameWidth() + 1;
  return {width, height};
}

namespace {

std::string png_of(View& view, const QSize& size, double scale) {
  QImage image(QSize(static_cast<int>(std::lround(size.width() * scale)),
                     static_cast<int>(std::lround(size.height() * scale))),
               QImage::Format_RGB32);
  if (image.isNull()) throw ConfigError("a picture of this size has no room in memory");
  image.setDevicePixelRatio(scale);
  image.fill(theme().paper);
  {
    QPainter painter(&image);
    painter.setRenderHint(QPainter::Antialiasing);
    view.draw(painter, size);
  }
  QByteArray bytes;
  QBuffer buffer(&bytes);
  buffer.open(QIODevice::WriteOnly);
  image.save(&buffer, "PNG");
  return bytes.toStdString();
}

std::string svg_of(View& view, const QSize& size) {
  QByteArray bytes;
  QBuffer buffer(&bytes);
  buffer.open(QIODevice::WriteOnly);
  QSvgGenerator generator;
  generator.setOutputDevice(&buffer);
  generator.setSize(size);
  generator.setViewBox(QRect(QPoint(), size));
  generator.setResolution(96);
  generator.setTitle(view.title());
  generator.setDescription("kvspan-viewer");
  {
    QPainter painter(&generator);
    painter.fillRect(QRect(QPoint(), size), theme().paper);
    view.draw(painter, size);
  }
  return bytes.toStdString();
}

}  // namespace

void export_view(View& view, const QString& path, const QSize& size, double scale) {
  const QString ending = QFileInfo(path).suffix().toLower();
  std::string content;
  if (ending == "png") {
    content = png_of(view, size, scale);
  } else if (ending == "svg") {
    content = svg_of(view, size);
  } else if (ending == "csv") {
    content = view.csv();
  } else {
    throw ConfigError(fmt::format("{}: found the ending '.{}', expected .png, .svg or .csv",
                                  path.toStdString(), ending.toStdString()));
  }
  write_file_atomically(path.toStdString(), content);
}

std::vector<View*> make_views(Document& document, QWidget* parent) {
  return {make_memory_view(document, parent),   make_runs_view(document, parent),
          make_lifetime_view(document, parent), make_resident_view(document, parent),
          make_peak_view(document, parent),     make_head_view(document, parent),
          make_tradeoff_view(document, parent), make_compare_view(document, parent),
          make_curves_view(document, parent),   make_matrix_view(document, parent),
          make_cells_view(document, parent),    make_scores_view(document, parent),
          make_answers_view(document, parent)};
}

}  // namespace kvspan::gui
