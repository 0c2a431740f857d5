// SPDX-License-Identifier: Apache-2.0
#include <QComboBox>
#include <QEvent>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QKeyEvent>
#include <QLabel>
#include <QMouseEvent>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>
#include <array>
#include <functional>

#include "gui/model/background.h"
#include "gui/model/columns.h"
#include "gui/model/csv.h"
#include "gui/model/peak_table.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kBarsShare = 5, kTableShare = 6;  // of the width
constexpr int kSpacing = 6;

// What a bar is made of, from the left.
struct BarPart {
  QString name;
  std::int64_t bytes = 0;
  QColor colour;
};

// One bar a layout; the chosen one in its parts.
class LayoutBars final : public QWidget {
 public:
  explicit LayoutBars(QWidget* parent) : QWidget(parent) {
    setFocusPolicy(Qt::StrongFocus);
    setAccessibleName("storage layouts");
    setMinimumSize(220, 90);
  }

  struct Bar {
    QString layout;
    std::int64_t bytes = 0;
    std::optional<std::int64_t> measured;  // of the same, by a replay
    [[nodiscard]] std::int64_t longest() const { return std::max(bytes, measured.value_or(0)); }
  };
  std::vector<Bar> bars;
  std::vector<BarPart> parts;  // of the chosen bar
  int chosen = 0;
  std::function<void(int)> choose;
  // All bars at their best, above the legend.
  [[nodiscard]] QSize picture_size() const {
    return {kWide, static_cast<int>(kLegend + kStep * static_cast<double>(bars.size()))};
  }

 protected:
  void paintEvent(QPaintEvent*) override {
    QPainter painter(this);
    painter.fillRect(rect(), theme().paper);
    if (bars.empty()) return;
    painter.setRenderHint(QPainter::Antialiasing);
    const QFontMetricsF metrics(font());
    QFont strong = font();
    strong.setBold(true);
    const QFontMetricsF widest(strong);
    std::int64_t most = 1;
    double names = 0;
    for (const Bar& bar : bars) {
      most = std::max(most, bar.longest());
      names = std::max(names, widest.horizontalAdvance(bar.layout));
    }
    const double left = names + 12;
    // Of the longest bar, so that every bar has its text behind it.
    double room = width() - left;
    for (const Bar& bar : bars) {
      const double behind = width() - left - widest.horizontalAdvance(text_of(bar)) - 16;
      room = std::min(room, std::max(10.0, behind) * static_cast<double>(most) /
                                static_cast<double>(std::max<std::int64_t>(1, bar.longest())));
    }
    for (int i = 0; i < static_cast<int>(bars.size()); ++i) {
      const Bar& bar = bars[static_cast<std::size_t>(i)];
      const double y = top(i);
      const double high = std::min(step() - 4, kMostHigh);
      const double length = room * static_cast<double>(bar.bytes) / static_cast<double>(most);
      QFont face = font();
      face.setBold(i == chosen);
      painter.setFont(face);
      painter.setPen(i == chosen && hasFocus() ? theme().accent : theme().ink);
      painter.drawText(QRectF(0, y, left - 8, high), Qt::AlignRight | Qt::AlignVCenter, bar.layout);
      const double end =
          left + room * static_cast<double>(bar.longest()) / static_cast<double>(most) + 6;
      painter.drawText(QRectF(end, y, width() - end, high), Qt::AlignLeft | Qt::AlignVCenter,
                       text_of(bar));
      painter.setPen(Qt::NoPen);
      if (i != chosen || parts.empty()) {
        painter.setBrush(i == chosen ? theme().accent
                                     : theme().grid.darker(theme().dark ? 70 : 108));
        painter.drawRect(QRectF(left, y, length, high));
      } else {
        double x = left;
        for (const BarPart& part : parts) {
          const double wide = room * static_cast<double>(std::max<std::int64_t>(0, part.bytes)) /
                              static_cast<double>(most);
          painter.setBrush(part.colour);
          painter.drawRect(QRectF(x, y, std::min(wide, left + length - x), high));
          x = std::min(x + wide, left + length);
        }
      }
      if (!bar.measured) continue;
      painter.setPen(QPen(theme().ink, 2, Qt::DotLine, Qt::FlatCap));
      const double at =
          left + room * static_cast<double>(*bar.measured) / static_cast<double>(most);
      painter.drawLine(QPointF(at, y - 2), QPointF(at, y + high + 2));
    }
    legend(painter, left, metrics);
  }

  void mousePressEvent(QMouseEvent* event) override {
    setFocus();
    for (int i = 0; i < static_cast<int>(bars.size()); ++i) {
      if (event->position().y() >= top(i) && event->position().y() < top(i) + step()) {
        if (choose) choose(i);
      }
    }
  }
  void keyPressEvent(QKeyEvent* event) override {
    if (event->key() != Qt::Key_Up && event->key() != Qt::Key_Down) return event->ignore();
    const int next = chosen + (event->key() == Qt::Key_Up ? -1 : 1);
    if (next >= 0 && next < static_cast<int>(bars.size()) && choose) choose(next);
  }
  void focusInEvent(QFocusEvent*) override { update(); }
  void focusOutEvent(QFocusEvent*) override { update(); }

 private:
  static constexpr int kWide = 520;
  static constexpr double kStep = 28, kMostStep = 48, kMostHigh = 32;  // of bars
  static constexpr double kLegend = 30;
  // The bar's bytes, and by how much what was measured deviates.
  static QString text_of(const Bar& bar) {
    QString bytes = bytes_text(static_cast<double>(bar.bytes));
    if (!bar.measured) return bytes;
    if (*bar.measured == bar.bytes) return bytes + ", measured: the same";
    const auto more = static_cast<double>(*bar.measured - bar.bytes);
    return QString("%1, measured %2 (%3 %)")
        .arg(bytes, difference_text(Quantity::bytes, more))
        .arg(100 * more / static_cast<double>(bar.bytes), 0, 'f', 2);
  }
  [[nodiscard]] double step() const {
    return std::clamp((height() - kLegend) / static_cast<double>(bars.size()), 8.0, kMostStep);
  }
  [[nodiscard]] double top(int bar) const { return 4 + bar * step(); }

  void legend(QPainter& painter, double left, const QFontMetricsF& metrics) const {
    double x = left;
    const double y = top(static_cast<int>(bars.size())) + 4;
    painter.setFont(font());
    for (const BarPart& part : parts) {
      if (part.bytes == 0) continue;
      const double wide = metrics.horizontalAdvance(part.name);
      if (x + wide + 16 > width()) break;
      painter.setPen(Qt::NoPen);
      painter.setBrush(part.colour);
      painter.drawRect(QRectF(x, y + 4, 10, 10));
      painter.setPen(theme().ink);
      painter.drawText(QRectF(x + 14, y, wide + 4, 18), Qt::AlignLeft | Qt::AlignVCenter,
                       part.name);
      x += wide + 28;
    }
  }
};

class PeakView final : public View {
 public:
  PeakView(Document& document, QWidget* parent) : View(document, parent), background_(nullptr) {
    auto* box = rows_of(*this);
    auto* row = new QHBoxLayout;
    controls_ = new QWidget(this);
    auto* controls = row_in(*controls_);
    phase_ = new QComboBox(controls_);
    phase_->addItems({"peak of the run", "peak of prefill", "peak of decode"});
    phase_->setAccessibleName("phase");
    phase_->setObjectName("phase");
    layout_ = new QComboBox(controls_);
    layout_->setAccessibleName("storage layout");
    layout_->setObjectName("layout");
    controls->addWidget(phase_);
    controls->addWidget(layout_);
    row->addWidget(controls_);
    caption_ = text_line(this, "caption");
    row->addWidget(caption_, 1);
    box->addLayout(row);
    auto* content = new QHBoxLayout;
    bars_ = new LayoutBars(this);
    content->addWidget(bars_, kBarsShare);
    auto* right = new QVBoxLayout;
    table_ = new QTableView(this);
    model_ = new PeakTable(this);
    table_->setModel(model_);
    table_->setAccessibleName("parts of the peak");
    table_->setShowGrid(false);
    table_->setWordWrap(false);
    table_->setFrameShape(QFrame::NoFrame);
    table_->setTabKeyNavigation(false);
    table_->setSelectionBehavior(QAbstractItemView::SelectRows);
    table_->verticalHeader()->hide();
    table_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 5);
    table_->horizontalHeader()->setHighlightSections(false);
    table_->horizontalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
    note_ = new QLabel(this);
    note_->setTextFormat(Qt::PlainText);
    note_->setObjectName("note");
    note_->setWordWrap(true);
    right->addWidget(table_, 1);
    right->addWidget(note_);
    content->addLayout(right, kTableShare);
    box->addLayout(content, 1);

    bars_->choose = [this](int bar) { layout_->setCurrentIndex(bar); };
    connect(phase_, &QComboBox::currentIndexChanged, this, [this] { rebuild(); });
    connect(layout_, &QComboBox::currentIndexChanged, this, [this] {
      if (!filling_) rebuild();
    });
    connect(&document, &Document::current_changed, this, [this] { rebuild(); });
    connect(&document, &Document::runs_changed, this, [this] { rebuild(); });
    rebuild();
  }

  [[nodiscard]] QString name() const override { return "peak"; }
  [[nodiscard]] QString title() const override { return "Peak"; }
  [[nodiscard]] QString help() const override {
    return "What the current run's memory is made of at its peak, by layer, and what the same run "
           "would take in other storage layouts; choose a phase and a layout. A dotted mark: what "
           "an open "
           "result of kvspan replay measured (memory behind the pool; of a phase, what it used).";
  }
  [[nodiscard]] bool is_ready() const override { return !background_.busy(); }
  [[nodiscard]] std::string csv() const override { return csv_of(*model_); }
  // The table is as wide as it has to be, the bars take the rest.
  void draw(QPainter& painter, const QSize& size) override {
    table_->setMaximumWidth(std::min(whole_size(*table_).width(), size.width() / 2));
    draw_without(*controls_, painter, size);
    table_->setMaximumWidth(QWIDGETSIZE_MAX);
  }
  [[nodiscard]] QSize picture_size() const override;

 protected:
  void changeEvent(QEvent* event) override {
    if (event->type() == QEvent::PaletteChange) rebuild();
    View::changeEvent(event);
  }

 private:
  [[nodiscard]] PeakPhase phase() const { return static_cast<PeakPhase>(phase_->currentIndex()); }

  void rebuild() {
    background_.cancel();
    const ShownRun* shown = document().current_run();
    bars_->bars.clear();
    bars_->parts.clear();
    if (shown == nullptr) {
      model_->set_total(std::nullopt);
      caption_->clear();
      note_->setText("Open a result to see what its peak is made of.");
      bars_->update();
      return;
    }
    const Result& result = *shown->result;
    // The layout stays when the run changes.
    const QString wanted =
        layout_->count() > 0 ? layout_->currentText() : QString::fromStdString(result.layout);
    filling_ = true;
    layout_->clear();
    for (const std::string& name : peak_layouts(result, shown->index)) {
      layout_->addItem(QString::fromStdString(name));
    }
    int at = layout_->findText(wanted);
    if (at < 0 && !shown->run().replayed.empty()) at = layout_->findText(kBacked);
    layout_->setCurrentIndex(std::max(0, at));
    filling_ = false;
    for (int i = 0; i < layout_->count(); ++i) {
      const auto total =
          peak_total(result, shown->index, layout_->itemText(i).toStdString(), phase());
      if (total)
        bars_->bars.push_back({layout_->itemText(i), *total,
                               measured_peak(document().runs(), *shown,
                                             layout_->itemText(i).toStdString(), phase())});
    }
    bars_->chosen = layout_->currentIndex();
    bars_->update();
    const std::string layout = layout_->currentText().toStdString();
    const auto total = peak_total(result, shown->index, layout, phase());
    model_->set_total(total);
    const bool decodes = result.trace.prompt < result.trace.tokens;
    if (phase() == PeakPhase::decode && !decodes) {
      return say(*shown, "", "This trace has no decode rows.");
    }
    if (!shown->run().replayed.empty()) return say_measured(*shown, layout, total);
    if (!result.lifetimes) {
      return say(*shown, total ? bytes_text(static_cast<double>(*total)) : "",
                 "By layer needs the run's lifetimes: kvspan run ... --lifetimes FILE");
    }
    say(*shown, "", "adding up layers ...");
    background_.run(
        [held = shown->result, run = shown->index, layout,
         which = phase()](const Background::Cancelled& cancelled) {
          return peak_parts(*held, run, layout, which, cancelled);
        },
        [this, run = *shown](const PeakParts& parts) {
          show_parts(run, parts);
          emit ready();
        },
        [this](const QString& line) {
          note_->setText(line);
          emit ready();
        });
  }

  // What was measured beside what was predicted.
  void say_measured(const ShownRun& shown, const std::string& which,
                    const std::optional<std::int64_t>& bytes) {
    const auto predicted = peak_total(*shown.result, shown.index, kPredicted, phase());
    QString figures = bytes ? bytes_text(static_cast<double>(*bytes)) : "not said";
    if (bytes && predicted && which != kPredicted) {
      const auto more = static_cast<double>(*bytes - *predicted);
      figures += QString(", %1 (%2 %) beyond what was predicted")
                     .arg(difference_text(Quantity::bytes, more))
                     .arg(100 * more / static_cast<double>(*predicted), 0, 'f', 2);
    }
    QString note = QString::fromStdString(shown.run().klass) +
                   ". predicted: by the simulator; pool: what its blocks and slots took; backed: "
                   "the most memory behind them, and what the device says of that.";
    for (const std::string& line : shown.run().notes) note += " " + QString::fromStdString(line);
    say(shown, figures, note);
  }

  void show_parts(const ShownRun& shown, const PeakParts& parts) {
    model_->set(parts);
    PeakParts::Part sum;
    for (const PeakParts::Part& part : parts.layers) {
      sum.prompt += part.prompt;
      sum.generated += part.generated;
      sum.layout += part.layout;
      sum.overhead += part.overhead;
    }
    bars_->parts = {{"prompt", sum.prompt, run_colour(2)},
                    {"generated", sum.generated, run_colour(6)},
                    {"layout", sum.layout + parts.rest, run_colour(1)},
                    {"overhead", sum.overhead + parts.state + parts.once, run_colour(4)}};
    if (bars_->bars.empty()) {
      bars_->bars.push_back({layout_->currentText(), parts.total, {}});
      bars_->chosen = 0;
    }
    bars_->update();
    say(shown,
        QString("%1 at row %2")
            .arg(bytes_text(static_cast<double>(parts.total)), count_text(parts.row)),
        "");
  }

  void say(const ShownRun& shown, const QString& figures, const QString& note) {
    caption_->setText(QString::fromStdString(shown.run().label) + ", " + phase_->currentText() +
                      (figures.isEmpty() ? "" : ": " + figures) +
                      (shown.run().replayed.empty() ? ", layout " : ", ") + layout_->currentText());
    note_->setText(note);
    note_->setVisible(!note.isEmpty());
  }

  QWidget* controls_ = nullptr;
  QComboBox *phase_ = nullptr, *layout_ = nullptr;
  QLabel *caption_ = nullptr, *note_ = nullptr;
  LayoutBars* bars_ = nullptr;
  QTableView* table_ = nullptr;
  PeakTable* model_ = nullptr;
  bool filling_ = false;
  Background background_;
};

// The bars beside the table, both whole.
QSize PeakView::picture_size() const {
  if (bars_->bars.empty()) return kNoteSize;
  const QSize bars = bars_->picture_size();
  QSize table = whole_size(*table_);
  const int note = note_->isHidden() ? 0 : note_->heightForWidth(table.width()) + kSpacing;
  const int height =
      caption_->sizeHint().height() + kSpacing + std::max(bars.height(), table.height() + note);
  return QSize(std::max(bars.width(), table.width()) + table.width() + kSpacing, height)
      .grownBy(layout()->contentsMargins());
}

}  // namespace

View* make_peak_view(Document& document, QWidget* parent) { return new PeakView(document, parent); }

}  // namespace kvspan::gui
