// SPDX-License-Identifier: Apache-2.0
#include <QCheckBox>
#include <QComboBox>
#include <QHBoxLayout>
#include <QLabel>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>
#include <utility>

#include "gui/paint/theme.h"
#include "gui/paint/time_chart.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

class MemoryView final : public View {
 public:
  MemoryView(Document& document, QWidget* parent);
  [[nodiscard]] QString name() const override { return "memory"; }
  [[nodiscard]] QString title() const override { return "Memory over time"; }
  [[nodiscard]] QString help() const override;
  [[nodiscard]] std::string csv() const override { return memory_csv(document()); }
  void draw(QPainter& painter, const QSize& size) override { chart_->draw(painter, size); }
  [[nodiscard]] QString hovered_text() const override {
    const QString box = chart_->hovered_text();
    return box.isEmpty() ? readout_->text() : box;
  }

 private:
  void rebuild();
  void show_selection();
  template <class Change>
  void change(const Change& with) {
    Display display = document().display();
    with(display);
    document().set_display(display);
  }
  QComboBox* quantity_;
  QComboBox* stack_;
  QCheckBox* log_;
  QLabel* readout_;
  TimeChart* chart_;
};

MemoryView::MemoryView(Document& document, QWidget* parent)
    : View(document, parent),
      quantity_(new QComboBox),
      stack_(new QComboBox),
      log_(new QCheckBox("&Log")),
      readout_(new QLabel),
      chart_(new TimeChart(document, this)) {
  quantity_->addItems({"Entries", "Bytes", "Percent of full", "Retained attention"});
  quantity_->setAccessibleName("Quantity");
  quantity_->setToolTip("What the chart counts (E, B, %, M)");
  stack_->addItems({"All runs", "By layer", "By head class", "By state"});
  stack_->setAccessibleName("Stack");
  stack_->setToolTip("Lines of all runs, or the current run in parts (S)");
  log_->setToolTip("Logarithmic values (L)");
  readout_->setAccessibleName("Selection");
  readout_->setTextFormat(Qt::PlainText);
  readout_->setTextInteractionFlags(Qt::TextSelectableByMouse);
  readout_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
  auto* bar = new QHBoxLayout;
  bar->setContentsMargins(6, 3, 6, 3);
  bar->setSpacing(6);
  bar->addWidget(quantity_);
  bar->addWidget(stack_);
  bar->addWidget(log_);
  bar->addWidget(readout_, 1);
  auto* layout = new QVBoxLayout(this);
  layout->setContentsMargins(0, 0, 0, 0);
  layout->setSpacing(0);
  layout->addLayout(bar);
  layout->addWidget(chart_, 1);
  setFocusProxy(chart_);

  connect(quantity_, &QComboBox::activated, this, [this](int i) {
    change([&](Display& display) { display.quantity = static_cast<Quantity>(i); });
  });
  connect(stack_, &QComboBox::activated, this, [this](int i) {
    change([&](Display& display) { display.stack = static_cast<Stack>(i); });
  });
  connect(log_, &QCheckBox::clicked, this,
          [this](bool on) { change([&](Display& display) { display.log = on; }); });
  connect(&document, &Document::runs_changed, this, [this] { rebuild(); });
  connect(&document, &Document::current_changed, this, [this] { rebuild(); });
  connect(&document, &Document::display_changed, this, [this] { rebuild(); });
  connect(&document, &Document::selection_changed, this, [this] { show_selection(); });
  rebuild();
}

QString MemoryView::help() const {
  return "Memory of every visible run over rows. Wheel or +/- zooms, Shift+wheel, right drag or "
         "Ctrl+arrows pans, drag or Shift+arrows selects rows, a click or the arrows an instant; "
         "double click or Return zooms to the selection, Home shows all rows, P goes to the peak, "
         "Up and Down change the current run; E, B, %, M choose what is counted, S the stack, L a "
         "log axis. CSV: all rows of the zoom up to 4,096; of more, the row with the current run's "
         "largest value in each of 4,096 equal parts; shares are in [0, 1].";
}

void MemoryView::rebuild() {
  const Document& d = document();
  const Display& display = d.display();
  quantity_->setCurrentIndex(static_cast<int>(display.quantity));
  stack_->setCurrentIndex(static_cast<int>(display.stack));
  log_->setChecked(display.log);

  ChartContent content;
  content.quantity = display.quantity;
  content.log = display.log;
  const auto add = [&](int run) {
    const ShownRun& shown = d.runs()[static_cast<std::size_t>(run)];
    Measure measure = measure_of(shown, display.quantity);
    if (measure.series != nullptr) content.lines.push_back({measure, run, run == d.current()});
  };
  bool any = false;
  if (d.current() >= 0 && display.stack != Stack::none) {
    any = true;
    Stacking stacking(*d.current_run(), display.quantity, display.stack);
    if (stacking.missing().isEmpty()) {
      add(d.current());
      content.log = false;  // parts of a logarithm have no lengths
      content.stacking = std::move(stacking);
    } else {
      content.message = stacking.missing();
    }
  } else {
    for (std::size_t r = 0; r < d.runs().size(); ++r) {
      any = any || d.runs()[r].visible;
      if (d.runs()[r].visible && static_cast<int>(r) != d.current()) add(static_cast<int>(r));
    }
    const ShownRun* current = d.current_run();
    if (current != nullptr && current->visible) add(d.current());
  }
  log_->setEnabled(display.stack == Stack::none);
  if (d.runs().empty()) {
    content.message = "Nothing is open: open a result of 'kvspan run ... --out FILE' (Ctrl+O).";
  } else if (!any) {
    content.message = "All runs are hidden: tick one in the list.";
  } else if (content.lines.empty() && content.message.isEmpty()) {
    content.message = display.quantity == Quantity::mass
                          ? "No visible run has its retained attention: kvspan run without "
                            "--fidelity none measures it."
                          : "No visible run says what it held: open its result JSON or timeline.";
  }
  chart_->set_content(std::move(content));
  show_selection();
}

// "rows 512 to 699: 1.12 MiB to 0.90 MiB, -0.22 MiB; 0.90 to 1.20 MiB" of the current run.
void MemoryView::show_selection() {
  const Document& d = document();
  const Rows rows = d.selection();
  QString text;
  QString of;
  if (d.current_run() != nullptr && !rows.empty()) {
    const Quantity quantity = d.display().quantity;
    const Measure measure = measure_of(*d.current_run(), quantity);
    of = run_names(d)[static_cast<std::size_t>(d.current())];
    text = rows_text(rows);
    if (measure.series != nullptr && rows.end <= measure.series->rows()) {
      const double start = measure.at(rows.begin);
      const double end = measure.at(rows.end - 1);
      const auto value = [&](double v) { return value_text(quantity, v); };
      text += ": " + value(start);
      if (rows.size() > 1) {
        const Extremes found = measure.series->over(rows.begin, rows.end);
        const RowIndex high = measure.series->row_of_high(rows.begin, rows.end);
        text += QString(" %1 %2, %3; min %4, max %5 at %6")
                    .arg(QChar(0x2192))
                    .arg(value(end), difference_text(quantity, end - start),
                         value(found.low * measure.scale), value(found.high * measure.scale),
                         count_text(high));
      }
    }
    text += "   " + of;
  }
  readout_->setText(text);
  readout_->setToolTip(text);
}

}  // namespace

View* make_memory_view(Document& document, QWidget* parent) {
  return new MemoryView(document, parent);
}

}  // namespace kvspan::gui
