// SPDX-License-Identifier: Apache-2.0
#include <QCheckBox>
#include <QComboBox>
#include <QEvent>
#include <QHBoxLayout>
#include <QLabel>
#include <QVBoxLayout>
#include <array>

#include "gui/model/csv.h"
#include "gui/model/head_table.h"
#include "gui/model/numbers.h"
#include "gui/paint/head_map.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr std::array kFigures{"KV footprint", "peak KV", "retained attention"};

class HeadView final : public View {
 public:
  HeadView(Document& document, QWidget* parent) : View(document, parent) {
    auto* box = rows_of(*this);
    controls_ = new QWidget(this);
    auto* row = row_in(*controls_);
    figure_ = new QComboBox(controls_);
    for (const char* name : kFigures) figure_->addItem(name);
    figure_->setAccessibleName("figure");
    figure_->setObjectName("figure");
    difference_ = new QCheckBox("less the &baseline", controls_);
    difference_->setObjectName("difference");
    readout_ = text_line(controls_, "readout");
    row->addWidget(figure_);
    row->addWidget(difference_);
    row->addSpacing(8);
    row->addWidget(readout_, 1);
    box->addWidget(controls_);
    table_ = new HeadTable(this);
    map_ = new HeadMap(document, *table_, this);
    box->addWidget(map_, 1);
    empty_ = new QLabel(this);
    empty_->setAlignment(Qt::AlignCenter);
    empty_->setWordWrap(true);
    box->addWidget(empty_, 1);
    connect(figure_, &QComboBox::currentIndexChanged, this, [this](int index) {
      Display display = this->document().display();
      display.head_figure = static_cast<HeadFigure>(index);
      this->document().set_display(display);
    });
    connect(difference_, &QCheckBox::toggled, this, [this] { rebuild(); });
    for (const auto signal :
         {&Document::current_changed, &Document::display_changed, &Document::runs_changed}) {
      connect(&document, signal, this, [this] { rebuild(); });
    }
    connect(&document, &Document::focus_changed, this, [this] {
      map_->update();
      say(-1, -1);
    });
    map_->hovered = [this](int layer, int head) { say(layer, head); };
    rebuild();
  }

  [[nodiscard]] QString name() const override { return "heads"; }
  [[nodiscard]] QString title() const override { return "Layers and heads"; }
  [[nodiscard]] QString help() const override {
    return "Footprint, peak or retained attention of every layer and head of the current run, or "
           "its difference to the baseline. Click, or the arrow keys, select a layer and head in "
           "all views; Escape selects all of them.";
  }
  [[nodiscard]] std::string csv() const override {
    std::vector<std::string> names{"layer"};
    for (int h = 0; h < table_->heads(); ++h) names.push_back(csv_field(std::int64_t{h}));
    std::string text = csv_line(names);
    for (int l = 0; l < table_->layers(); ++l) {
      std::vector<std::string> fields{csv_field(std::int64_t{table_->model_layer(l)})};
      for (int h = 0; h < table_->heads(); ++h) fields.push_back(csv_field(table_->at(l, h)));
      text += csv_line(fields);
    }
    return text;
  }
  void draw(QPainter& painter, const QSize& size) override {
    draw_without(*controls_, painter, size);
  }
  [[nodiscard]] QSize picture_size() const override {
    const QMargins edge = layout()->contentsMargins();
    return table_->layers() == 0 ? kNoteSize : map_->picture_size().grownBy(edge);
  }

 protected:
  void changeEvent(QEvent* event) override {
    if (event->type() == QEvent::PaletteChange) map_->update();
    View::changeEvent(event);
  }

 private:
  void rebuild() {
    const ShownRun* shown = document().current_run();
    const ShownRun* baseline = difference_->isChecked() ? document().baseline_run() : nullptr;
    const HeadFigure figure_wanted = document().display().head_figure;
    figure_->setCurrentIndex(static_cast<int>(figure_wanted));
    table_->set(shown, baseline, figure_wanted);
    const bool any = table_->layers() > 0;
    map_->setVisible(any);
    empty_->setVisible(!any);
    empty_->setText(shown == nullptr ? "Open a result to see its layers and heads."
                    : shown->run().figures == nullptr
                        ? "Needs the result itself: kvspan run ... --out FILE"
                        : "Retained attention was not measured: run without --fidelity none.");
    if (shown != nullptr) {
      map_->caption =
          QString::fromStdString(label_of(shown->run())) + ": " + figure_->currentText();
      if (figure_wanted == HeadFigure::retained_mass && retained_mass_upper(shown->run()))
        map_->caption += ", at least (a score trace)";
      map_->caption +=
          table_->is_difference()
              ? " less that of " + QString::fromStdString(baseline->run().label) + ", points"
              : QString(", %");
    }
    map_->refresh();
    say(-1, -1);
  }

  // The cell below the mouse, else the selected one.
  void say(int layer, int column) {
    if (table_->layers() == 0) return readout_->clear();
    if (layer < 0 && column < 0) {
      layer = document().focus().layer;
      column = document().focus().head < 0 ? -1 : document().focus().head * table_->group();
    }
    if (column >= table_->heads()) column = -1;
    QString where = layer < 0 ? "all layers" : QString("layer %1").arg(table_->model_layer(layer));
    where += column < 0
                 ? QString(", all heads")
                 : QString(", %1 %2").arg(table_->group() > 1 ? "query head" : "head").arg(column);
    const double value = table_->mean(layer, column);
    QString text = percent_text(value, 2);
    if (table_->is_difference()) text.replace("%", "points");
    readout_->setText(where + ": " + text);
  }

  QWidget* controls_ = nullptr;
  QComboBox* figure_ = nullptr;
  QCheckBox* difference_ = nullptr;
  QLabel *readout_ = nullptr, *empty_ = nullptr;
  HeadTable* table_ = nullptr;
  HeadMap* map_ = nullptr;
};

}  // namespace

View* make_head_view(Document& document, QWidget* parent) { return new HeadView(document, parent); }

}  // namespace kvspan::gui
