// SPDX-License-Identifier: Apache-2.0
#include <QComboBox>
#include <QDoubleSpinBox>
#include <QEvent>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QPainter>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>

#include "gui/model/columns.h"
#include "gui/model/csv.h"
#include "gui/model/tradeoff.h"
#include "gui/paint/mark_delegate.h"
#include "gui/paint/theme.h"
#include "gui/paint/tradeoff_plot.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kWidestTable = 460;
constexpr QSize kPlot(1000, 620);  // of pictures

class TradeoffView final : public View {
 public:
  TradeoffView(Document& document, QWidget* parent) : View(document, parent) {
    auto* box = rows_of(*this);
    controls_ = new QWidget(this);
    auto* controls = row_in(*controls_);
    figure_ = new QComboBox(this);
    figure_->addItems(
        {"retained attention, mean", "retained attention, 5th percentile", "1 - output error"});
    figure_->setAccessibleName("fidelity");
    figure_->setObjectName("fidelity");
    threshold_ = new QDoubleSpinBox(this);
    threshold_->setRange(0, 100);
    threshold_->setDecimals(1);
    threshold_->setSuffix(" %");
    threshold_->setValue(90);
    threshold_->setAccessibleName("threshold");
    threshold_->setObjectName("threshold");
    auto* label = new QLabel("&Threshold F", this);
    label->setBuddy(threshold_);
    readout_ = text_line(this, "readout");
    controls->addWidget(figure_);
    controls->addWidget(label);
    controls->addWidget(threshold_);
    controls->addSpacing(8);
    controls->addWidget(readout_, 1);
    box->addWidget(controls_);

    row_ = new QHBoxLayout;
    plot_ = new TradeoffPlot(document, this);
    row_->addWidget(plot_, 5);
    table_ = new QTableView(this);
    model_ = new CriticalTable(this);
    table_->setModel(model_);
    table_->setItemDelegate(
        new MarkDelegate(CriticalTable::kColourRole, CriticalTable::kMarkRole, table_));
    table_->setAccessibleName("critical footprints");
    table_->setSelectionBehavior(QAbstractItemView::SelectRows);
    table_->setSelectionMode(QAbstractItemView::SingleSelection);
    table_->setShowGrid(false);
    table_->setWordWrap(false);
    table_->setTabKeyNavigation(false);
    table_->setFrameShape(QFrame::NoFrame);
    table_->verticalHeader()->hide();
    table_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 6);
    table_->horizontalHeader()->setHighlightSections(false);
    table_->horizontalHeader()->setDefaultAlignment(Qt::AlignLeft | Qt::AlignVCenter);
    table_->setSizePolicy(QSizePolicy::Preferred, QSizePolicy::Ignored);
    table_->setMaximumWidth(kWidestTable);
    row_->addWidget(table_, 4);
    empty_ = new QLabel(this);
    empty_->setAlignment(Qt::AlignCenter);
    empty_->setWordWrap(true);
    box->addLayout(row_, 1);
    box->addWidget(empty_, 1);

    connect(&document, &Document::runs_changed, this, [this] { rebuild(); });
    connect(&document, &Document::current_changed, this, [this] {
      plot_->viewport()->update();
      say();
    });
    connect(figure_, &QComboBox::currentIndexChanged, this, [this] { rebuild(); });
    connect(threshold_, &QDoubleSpinBox::valueChanged, this, [this] { rebuild(); });
    plot_->cursor_moved = [this](int) { say(); };
    const auto open = [this](const QModelIndex& index) {
      this->document().set_current(index.data(CriticalTable::kRunRole).toInt());
    };
    connect(table_, &QTableView::activated, this, open);
    connect(table_, &QTableView::clicked, this, open);
    rebuild();
  }

  [[nodiscard]] QString name() const override { return "tradeoff"; }
  [[nodiscard]] QString title() const override { return "Footprint and fidelity"; }
  [[nodiscard]] QString help() const override {
    return "Every visible run as a point: less memory to the left, more fidelity to the top; "
           "bounds are hollow, policies that differ only in numbers are joined on each trace and "
           "at each chunk size, the grey steps are the Pareto front, and the table tells how "
           "little memory each policy needs for the threshold. Lines above points are what a score "
           "trace leaves open. A dotted line from a point ends where the best eviction, knowing "
           "the "
           "future, retains as much. Arrows move, Enter opens a run.";
  }

  // In a picture the table is below the chart, as high as it has to be.
  void draw(QPainter& painter, const QSize& size) override {
    row_->setDirection(QBoxLayout::TopToBottom);
    table_->setMaximumWidth(QWIDGETSIZE_MAX);
    const int whole = whole_size(*table_).height();
    const bool fits = size.height() >= picture_size().height();
    table_->setFixedHeight(fits ? whole : std::min(whole, size.height() * 2 / 5));
    table_->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    table_->setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    draw_without(*controls_, painter, size);
    table_->setHorizontalScrollBarPolicy(Qt::ScrollBarAsNeeded);
    table_->setVerticalScrollBarPolicy(Qt::ScrollBarAsNeeded);
    table_->setMinimumHeight(0);
    table_->setMaximumSize(kWidestTable, QWIDGETSIZE_MAX);
    row_->setDirection(QBoxLayout::LeftToRight);
  }
  [[nodiscard]] QSize picture_size() const override {
    if (tradeoff_.points.empty()) return kNoteSize;
    const QSize table = whole_size(*table_);
    const QMargins margins = layout()->contentsMargins();
    return {std::max(kPlot.width(), table.width() + margins.left() + margins.right()),
            kPlot.height() + table.height() + row_->spacing()};
  }
  [[nodiscard]] std::string csv() const override {
    std::string text =
        csv_line({"policy", "label", "chunk", "footprint", "fidelity", "fidelity_upper", "bound",
                  "pareto", "critical", "family", "file", "trace", "prompt", "fidelity_figure",
                  "threshold", "regret", "optimum_footprint"});
    const auto or_empty = [](const std::optional<double>& share) {
      return share ? csv_field(*share) : std::string();
    };
    const auto yes = [](bool is) { return csv_field(std::int64_t{is ? 1 : 0}); };
    for (const Tradeoff::Point& p : tradeoff_.points) {
      const ShownRun& shown = document().runs()[p.run];
      text += csv_line(
          {csv_field(std::string_view(shown.run().policy)),
           csv_field(std::string_view(shown.run().label)),
           csv_field(static_cast<std::int64_t>(shown.result->chunk)), csv_field(p.footprint),
           csv_field(p.fidelity), csv_field(p.most), yes(p.bound), yes(p.front), yes(p.critical),
           csv_field(std::string_view(tradeoff_.families[p.family].name)),
           csv_field(std::string_view(shown.result->path.filename().string())),
           csv_field(std::string_view(shown.result->trace.path)),
           csv_field(static_cast<std::int64_t>(shown.result->trace.prompt)),
           csv_field(std::string_view(figure_->currentText().toStdString())),
           csv_field(threshold_->value() / 100), or_empty(p.regret), or_empty(p.optimum)});
    }
    return text;
  }

 protected:
  void changeEvent(QEvent* event) override {
    if (event->type() == QEvent::PaletteChange) rebuild();
    View::changeEvent(event);
  }

 private:
  void rebuild() {
    const double threshold = threshold_->value() / 100;
    tradeoff_ = make_tradeoff(document().runs(),
                              static_cast<FidelityFigure>(figure_->currentIndex()), threshold);
    const bool any = !tradeoff_.points.empty();
    plot_->setVisible(any);
    table_->setVisible(any);
    empty_->setVisible(!any);
    empty_->setText(document().runs().empty()
                        ? "Open the result of a sweep to see memory against fidelity."
                        : "No visible run was measured so: run without --fidelity none, and, for "
                          "output errors, on a trace that holds v.");
    model_->set(tradeoff_, document().runs());
    if (any) plot_->set(tradeoff_, threshold, figure_->currentText());
    QHeaderView* header = table_->horizontalHeader();
    header->setSectionResizeMode(QHeaderView::ResizeToContents);
    header->setStretchLastSection(true);
    say();
  }

  // The run below the cursor, else the current one.
  void say() {
    const int cursor = plot_->cursor();
    const auto at = std::find_if(
        tradeoff_.points.begin(), tradeoff_.points.end(), [&](const Tradeoff::Point& p) {
          return cursor >= 0 ? &p == &tradeoff_.points[static_cast<std::size_t>(cursor)]
                             : static_cast<int>(p.run) == document().current();
        });
    QString text;
    if (at != tradeoff_.points.end()) {
      text = run_names(document())[at->run] + ": footprint " + percent_text(at->footprint) +
             ", fidelity " + percent_text(at->fidelity);
      const bool open = at->most > at->fidelity;
      if (open) text += " to " + percent_text(at->most);
      if (at->front) text += open ? ", on the front: not surely beaten" : ", on the front";
      if (at->bound) text += ", a bound: reads the future";
      if (at->regret && at->optimum) {
        text += ", regret " + percent_text(at->regret) + "; the optimum retains as much with " +
                percent_text(at->optimum);
      }
    }
    if (tradeoff_.groups.size() > 1) {
      text += QString("%1%2 traces or prompts, a front each")
                  .arg(text.isEmpty() ? "" : "; ")
                  .arg(tradeoff_.groups.size());
    }
    if (tradeoff_.unmeasured > 0) {
      text += QString("%1%2 without this figure")
                  .arg(text.isEmpty() ? "" : "; ")
                  .arg(tradeoff_.unmeasured);
    }
    readout_->setText(text);
  }

  Tradeoff tradeoff_;
  QWidget* controls_ = nullptr;
  QBoxLayout* row_ = nullptr;
  QComboBox* figure_ = nullptr;
  QDoubleSpinBox* threshold_ = nullptr;
  QLabel *readout_ = nullptr, *empty_ = nullptr;
  TradeoffPlot* plot_ = nullptr;
  QTableView* table_ = nullptr;
  CriticalTable* model_ = nullptr;
};

}  // namespace

View* make_tradeoff_view(Document& document, QWidget* parent) {
  return new TradeoffView(document, parent);
}

}  // namespace kvspan::gui
