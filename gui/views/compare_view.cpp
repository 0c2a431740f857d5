// SPDX-License-Identifier: Apache-2.0
#include <QAbstractScrollArea>
#include <QComboBox>
#include <QHBoxLayout>
#include <QKeyEvent>
#include <QLabel>
#include <QSplitter>
#include <QVBoxLayout>
#include <algorithm>
#include <utility>

#include "gui/model/background.h"
#include "gui/paint/theme.h"
#include "gui/paint/time_chart.h"
#include "gui/views/kept_sets.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kChartHeight = 400,
              kBelowChart = 8;  // of pictures: height of the chart; what is below it

class CompareView final : public View {
 public:
  CompareView(Document& document, QWidget* parent);
  [[nodiscard]] QString name() const override { return "compare"; }
  [[nodiscard]] QString title() const override { return "Compare"; }
  [[nodiscard]] QString help() const override {
    return "The current run minus the baseline over rows: above zero it holds more. Zoom, "
           "selection and keys are those of memory over time; X swaps the two. CSV: as there, "
           "baseline, current and difference in each row.";
  }
  [[nodiscard]] bool is_ready() const override {
    return !background_.busy() && (!kept_->isVisible() || kept_->property("ready").toBool());
  }
  [[nodiscard]] std::string csv() const override { return difference_csv(document()); }
  [[nodiscard]] QString hovered_text() const override {
    const QString box = chart_->hovered_text();
    return box.isEmpty() ? readout_->text() : box;
  }
  // The difference above what is kept.
  void draw(QPainter& painter, const QSize& size) override {
    const int below = std::clamp(kept_->sizeHint().height() + kBelowChart, size.height() * 3 / 10,
                                 size.height() * 6 / 10);
    const int above = size.height() - below;
    chart_->draw(painter, {size.width(), above});
    const QRect before = kept_->geometry();
    kept_->resize(size.width() - 24, below - kBelowChart);
    const auto scrolled = kept_->findChildren<QAbstractScrollArea*>();
    for (QAbstractScrollArea* area : scrolled) {  // nothing to be moved
      area->setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    }
    kept_->render(&painter, QPoint(12, above + 4), QRegion(), QWidget::DrawChildren);
    for (QAbstractScrollArea* area : scrolled) {
      area->setVerticalScrollBarPolicy(Qt::ScrollBarAsNeeded);
    }
    kept_->setGeometry(before);
  }
  [[nodiscard]] QSize picture_size() const override {
    const int below = std::max(kept_->sizeHint().height() + kBelowChart, 120);
    return {kPictureSize.width(), std::min(kChartHeight + below, kPictureSize.height() * 3 / 2)};
  }

 protected:
  void keyPressEvent(QKeyEvent* event) override;
  bool eventFilter(QObject* watched, QEvent* event) override {
    if (event->type() == QEvent::DynamicPropertyChange && is_ready()) emit ready();
    return View::eventFilter(watched, event);
  }

 private:
  void fill_lists();
  void rebuild();
  void show(ChartContent content);
  void show_selection();
  [[nodiscard]] QString pair_name() const;
  QComboBox* current_;
  QComboBox* baseline_;
  QLabel* readout_;
  TimeChart* chart_;
  QWidget* kept_;
  Background background_;
};

CompareView::CompareView(Document& document, QWidget* parent)
    : View(document, parent),
      current_(new QComboBox),
      baseline_(new QComboBox),
      readout_(new QLabel),
      chart_(new TimeChart(document, nullptr)),
      kept_(make_kept_sets(document, nullptr)),
      background_(nullptr) {
  current_->setAccessibleName("Current run");
  baseline_->setAccessibleName("Baseline");
  readout_->setAccessibleName("Difference in the selection");
  readout_->setTextFormat(Qt::PlainText);
  readout_->setTextInteractionFlags(Qt::TextSelectableByMouse);
  readout_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
  for (QComboBox* list : {current_, baseline_}) {
    list->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    list->setMinimumContentsLength(22);
  }
  auto* bar = new QHBoxLayout;
  bar->setContentsMargins(6, 3, 6, 3);
  bar->setSpacing(6);
  bar->addWidget(current_);
  bar->addWidget(new QLabel("minus"));
  bar->addWidget(baseline_);
  bar->addWidget(readout_, 1);
  auto* parts = new QSplitter;
  parts->addWidget(chart_);
  parts->addWidget(kept_);
  kept_->installEventFilter(this);
  parts->setSizes({1000, 1000});  // shares: halves
  parts->setChildrenCollapsible(false);
  auto* layout = new QVBoxLayout(this);
  layout->setContentsMargins(0, 0, 0, 0);
  layout->setSpacing(0);
  layout->addLayout(bar);
  layout->addWidget(parts, 1);
  setFocusProxy(chart_);

  connect(current_, &QComboBox::activated, this,
          [this](int i) { this->document().set_current(i); });
  connect(baseline_, &QComboBox::activated, this,
          [this](int i) { this->document().set_baseline(i); });
  connect(&document, &Document::runs_changed, this, [this] { fill_lists(); });
  connect(&document, &Document::current_changed, this, [this] { rebuild(); });
  connect(&document, &Document::display_changed, this, [this] { rebuild(); });
  connect(&document, &Document::selection_changed, this, [this] { show_selection(); });
  fill_lists();
}

void CompareView::fill_lists() {
  for (QComboBox* list : {current_, baseline_}) {
    list->clear();
    for (const QString& name : run_names(document())) list->addItem(name);
  }
  chart_->set_content({.difference = true, .message = "Comparing ..."});  // runs have new numbers
  rebuild();
}

QString CompareView::pair_name() const {
  const std::vector<QString> names = run_names(document());
  return QString("%1 %2 %3")
      .arg(names[static_cast<std::size_t>(document().current())])
      .arg(QChar(0x2212))
      .arg(names[static_cast<std::size_t>(document().baseline())]);
}

// The difference is folded into levels, which reads all rows: in the background.
void CompareView::rebuild() {
  const Document& d = document();
  current_->setCurrentIndex(d.current());
  baseline_->setCurrentIndex(d.baseline());
  background_.cancel();
  ChartContent content;
  content.quantity = d.display().quantity;
  content.difference = true;
  const auto say = [&](const QString& message) { show({.difference = true, .message = message}); };
  if (d.current_run() == nullptr)
    return say("Nothing is open: open a result with two or more runs.");
  if (d.current() == d.baseline()) {
    return say("The current run is the baseline: choose another one above.");
  }
  const Measure current = measure_of(*d.current_run(), content.quantity);
  const Measure baseline = measure_of(*d.baseline_run(), content.quantity);
  if (current.series == nullptr || baseline.series == nullptr) {
    return say("One of the two runs does not say this quantity: choose another one (E, B, %, M).");
  }
  content.title = pair_name();
  background_.run(
      [current, baseline](const Background::Cancelled& cancelled) {
        return series_of_difference(current, baseline, cancelled);
      },
      [this, content, run = d.current()](const SeriesPtr& series) mutable {
        content.lines.push_back({{series, 1}, run, true});
        show(std::move(content));
      },
      [this](const QString& why) { show({.difference = true, .message = why}); });
}

void CompareView::show(ChartContent content) {
  chart_->set_content(std::move(content));
  show_selection();
  emit ready();
}

void CompareView::show_selection() {
  const Document& d = document();
  const Rows rows = d.selection();
  QString text;
  if (d.current_run() != nullptr && !rows.empty()) {
    const Quantity quantity = d.display().quantity;
    const Measure a = measure_of(*d.current_run(), quantity);
    const Measure b = measure_of(*d.baseline_run(), quantity);
    text = rows_text(rows);
    if (a.series != nullptr && b.series != nullptr &&
        rows.end <= std::min(a.series->rows(), b.series->rows())) {
      const auto at = [&](RowIndex row) {
        return difference_text(quantity, a.at(row) - b.at(row));
      };
      text += ": " + at(rows.begin);
      if (rows.size() > 1) text += QString(" %1 %2").arg(QChar(0x2192)).arg(at(rows.end - 1));
    }
  }
  readout_->setText(text);
}

void CompareView::keyPressEvent(QKeyEvent* event) {
  if (event->key() != Qt::Key_X) return View::keyPressEvent(event);
  const int current = document().current();
  document().set_current(document().baseline());
  document().set_baseline(current);
}

}  // namespace

View* make_compare_view(Document& document, QWidget* parent) {
  return new CompareView(document, parent);
}

}  // namespace kvspan::gui
