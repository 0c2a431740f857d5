// SPDX-License-Identifier: Apache-2.0
// What every view is: a widget on the document that can also be put on paper, as a picture or as
// the numbers behind it.
#pragma once

#include <QPainter>
#include <QString>
#include <QWidget>
#include <cstddef>
#include <string>
#include <vector>

#include "gui/model/document.h"

class QHBoxLayout;
class QLabel;
class QTableView;
class QVBoxLayout;

namespace kvspan::gui {

// A picture of what fills any size.
inline constexpr QSize kPictureSize(1280, 800);
// Of one that only says why there is nothing.
inline constexpr QSize kNoteSize(900, 160);

class View : public QWidget {
  Q_OBJECT
 public:
  View(Document& document, QWidget* parent) : QWidget(parent), document_(document) {}

  [[nodiscard]] virtual QString name() const = 0;   // of --view: "memory"
  [[nodiscard]] virtual QString title() const = 0;  // of its tab: "Memory over time"
  [[nodiscard]] virtual QString help() const = 0;   // one sentence: what it shows, what can be done
  // False while nothing is open that it could show.
  [[nodiscard]] virtual bool has_content() const { return !document_.runs().empty(); }
  // False while something that it shows is still being computed; ready() follows.
  [[nodiscard]] virtual bool is_ready() const { return true; }
  // The numbers that are shown, RFC 4180 with a line of column names, lines end with '\n'.
  [[nodiscard]] virtual std::string csv() const = 0;
  // What it says of the place under the mouse or cursor, columns parted by tabs; empty: nothing.
  [[nodiscard]] virtual QString hovered_text() const;
  // Draws the view as a picture of `size` (at most a legend or a caption beyond what the window
  // shows); the default draws the widget.
  virtual void draw(QPainter& painter, const QSize& size);
  // The size of a picture that has room for all of it and for no more, as far as that is ready.
  [[nodiscard]] virtual QSize picture_size() const { return kPictureSize; }

 signals:
  void ready();

 protected:
  [[nodiscard]] Document& document() const { return document_; }
  // Draws the widget without a part of it that is only there to be clicked.
  void draw_without(QWidget& controls, QPainter& painter, const QSize& size);

 private:
  Document& document_;
};

// The rows of a view, from the top, with the margins that all views have.
[[nodiscard]] QVBoxLayout* rows_of(QWidget& view);
// What stands side by side in one of them.
[[nodiscard]] QHBoxLayout* row_in(QWidget& part);
// One line of plain text that takes the room there is, and asks for none.
[[nodiscard]] QLabel* text_line(QWidget* parent, const char* name);
// What a table needs to show all of its rows and columns.
[[nodiscard]] QSize whole_size(const QTableView& table);
// A table of rows to choose from: one row at a time, striped, without grid, frame or row numbers.
void set_up_rows(QTableView& table);

// Writes a view as .png, .svg or .csv, by the name's end; atomically.
//   size   logical pixels; scale: of PNG pixels to them
// Errors: ConfigError for another ending; Error when the disk refuses.
void export_view(View& view, const QString& path, const QSize& size, double scale);

// ---- The views ----------------------------------------------------------------------------------

[[nodiscard]] View* make_memory_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_lifetime_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_head_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_tradeoff_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_peak_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_resident_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_runs_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_compare_view(Document& document, QWidget* parent);
// Of a sweep's folder.
[[nodiscard]] View* make_cells_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_matrix_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_curves_view(Document& document, QWidget* parent);
// Of what `kvspan eval` wrote.
[[nodiscard]] View* make_scores_view(Document& document, QWidget* parent);
[[nodiscard]] View* make_answers_view(Document& document, QWidget* parent);
// All of them, in the order of their tabs; the first kRunViews are of runs.
inline constexpr std::size_t kRunViews = 8;
[[nodiscard]] std::vector<View*> make_views(Document& document, QWidget* parent);

}  // namespace kvspan::gui
