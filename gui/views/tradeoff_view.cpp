// SPDX-License-Identifier: Apache-2.0
#include <QApplication>
#include <QChart>
#include <QChartView>
#include <QComboBox>
#include <QDoubleSpinBox>
#include <QEvent>
#include <QGraphicsLayout>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QKeyEvent>
#include <QLabel>
#include <QLineSeries>
#include <QMouseEvent>
#include <QScatterSeries>
#include <QStyledItemDelegate>
#include <QTableView>
#include <QVBoxLayout>
#include <QValueAxis>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "gui/model/columns.h"
#include "gui/model/csv.h"
#include "gui/model/tradeoff.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr std::array kSteps{1.0, 2.0, 5.0, 10.0};
constexpr double kFar = 26;    // pixels from a point to its label, where there is no room beside it
constexpr double kMarker = 9;  // pixels across

// The axis of shares in percent: 1, 2 or 5 times a power of ten apart.
void set_range(QValueAxis* axis, double low, double high) {
  const double rough = std::max(high - low, 1e-6) / 7;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const auto factor =
      std::find_if(kSteps.begin(), kSteps.end(), [&](double f) { return f * power >= rough; });
  const double step = *factor * power;
  axis->setTickType(QValueAxis::TicksDynamic);
  axis->setTickAnchor(0);
  axis->setTickInterval(step);
  axis->setLabelFormat(step < 1 ? "%.1f" : "%.0f");
  axis->setRange(low, high);
}

// The chart, and what Qt Charts does not have: labels that keep clear of each other, a cursor.
class Plot final : public QChartView {
 public:
  Plot(Document& document, QWidget* parent) : QChartView(new QChart, parent), document_(document) {
    setFocusPolicy(Qt::StrongFocus);
    setMouseTracking(true);
    setFrameShape(QFrame::NoFrame);
    setRenderHint(QPainter::Antialiasing);
    setAccessibleName("footprint against fidelity");
    setMinimumSize(200, 120);
    chart()->legend()->hide();
    chart()->setMargins(QMargins(2, 2, 8, 2));
    chart()->layout()->setContentsMargins(0, 0, 0, 0);
    chart()->setBackgroundRoundness(0);
    chart()->setAnimationOptions(QChart::NoAnimation);
    chart()->addAxis(x_, Qt::AlignBottom);
    chart()->addAxis(y_, Qt::AlignLeft);
  }

  std::function<void(int point)> cursor_moved;  // -1: none

  void set(const Tradeoff& tradeoff, double threshold, const QString& fidelity_name) {
    tradeoff_ = tradeoff;
    threshold_ = threshold;
    cursor_ = -1;
    chart()->removeAllSeries();
    double right = 0, low = threshold, high = threshold;
    for (const Tradeoff::Point& p : tradeoff_.points) {
      right = std::max(right, p.footprint);
      low = std::min(low, p.fidelity);
      high = std::max(high, p.fidelity);
    }
    const double pad = std::max(0.02, 0.06 * (high - low));
    set_range(x_, 0, 104 * std::max(right, 0.05));
    set_range(y_, 100 * (low - pad), 100 * (high + pad));
    x_->setTitleText("KV footprint, % of a full cache");
    y_->setTitleText(fidelity_name + ", %");
    const Theme& t = theme();
    chart()->setBackgroundBrush(t.paper);
    setBackgroundBrush(t.paper);
    for (QValueAxis* axis : {x_, y_}) {
      axis->setLabelsColor(t.ink);
      axis->setTitleBrush(t.ink);
      axis->setGridLineColor(t.grid);
      axis->setLinePenColor(t.faint);
      QFont font = this->font();
      axis->setLabelsFont(font);
      axis->setTitleFont(font);
    }
    for (const Tradeoff::Group& group : tradeoff_.groups) draw_front(group.front);
    for (const Tradeoff::Family& family : tradeoff_.families) draw_family(family);
    for (const Tradeoff::Point& p : tradeoff_.points) draw_point(p);
    auto* line = add_line(QPen(t.accent, 1, Qt::DashLine));
    line->append(x_->min(), 100 * threshold_);
    line->append(x_->max(), 100 * threshold_);
    viewport()->update();
  }

  [[nodiscard]] int cursor() const { return cursor_; }
  void set_cursor(int point) {
    if (point == cursor_) return;
    cursor_ = point;
    if (cursor_moved) cursor_moved(point);
    viewport()->update();
  }

 protected:
  void drawForeground(QPainter* painter, const QRectF&) override {
    if (tradeoff_.points.empty()) return;
    const Theme& t = theme();
    painter->save();
    painter->setRenderHint(QPainter::Antialiasing);
    painter->setFont(font());
    const QRectF area = chart()->mapRectToScene(chart()->plotArea());
    // Drops from the critical points to the axis, and the threshold's name.
    for (const Tradeoff::Point& p : tradeoff_.points) {
      if (!p.critical) continue;
      const QPointF at = place(p);
      painter->setPen(QPen(run_colour(colour_of(p)), 1, Qt::DotLine));
      painter->drawLine(at, QPointF(at.x(), area.bottom()));
    }
    const double y = place(0, threshold_).y();
    painter->setPen(t.accent);
    const QString name = "F = " + percent_text(threshold_);
    painter->drawText(QPointF(area.left() + 6, y - 4), name);
    std::vector<QRectF> taken{QRectF(QPointF(area.left() + 6, y - 16),
                                     QSizeF(fontMetrics().horizontalAdvance(name), 16))};
    for (const Tradeoff::Point& p : tradeoff_.points) {
      taken.push_back(box(place(p), kMarker + 2));
    }
    draw_labels(*painter, area, taken, lines(y, area));
    const auto ring = [&](const Tradeoff::Point& p, const QColor& colour) {
      painter->setBrush(Qt::NoBrush);
      painter->setPen(QPen(colour, 1.6));
      painter->drawEllipse(place(p), kMarker * 0.85, kMarker * 0.85);
    };
    for (const Tradeoff::Point& p : tradeoff_.points) {
      if (static_cast<int>(p.run) == document_.current()) ring(p, t.ink);
    }
    if (cursor_ >= 0) ring(tradeoff_.points[static_cast<std::size_t>(cursor_)], t.accent);
    painter->restore();
  }

  void mouseMoveEvent(QMouseEvent* event) override { set_cursor(nearest(event->position())); }
  void leaveEvent(QEvent*) override { set_cursor(-1); }
  void mousePressEvent(QMouseEvent* event) override {
    setFocus();
    set_cursor(nearest(event->position()));
    choose();
  }

  void keyPressEvent(QKeyEvent* event) override {
    const int count = static_cast<int>(tradeoff_.points.size());
    const bool left = event->key() == Qt::Key_Left || event->key() == Qt::Key_Down;
    if (left || event->key() == Qt::Key_Right || event->key() == Qt::Key_Up) {
      if (count == 0) return;
      std::vector<int> order(static_cast<std::size_t>(count));
      for (int i = 0; i < count; ++i) order[static_cast<std::size_t>(i)] = i;
      const auto of = [&](int i) { return tradeoff_.points[static_cast<std::size_t>(i)]; };
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return std::pair(of(a).footprint, of(a).fidelity) <
               std::pair(of(b).footprint, of(b).fidelity);
      });
      int start = cursor_;
      for (int i = 0; i < count && start < 0; ++i) {
        if (static_cast<int>(of(i).run) == document_.current()) start = i;
      }
      const auto at = std::find(order.begin(), order.end(), start) - order.begin();
      const auto next = std::clamp<std::ptrdiff_t>(at + (left ? -1 : 1), 0, count - 1);
      set_cursor(order[static_cast<std::size_t>(next)]);
    } else if (event->key() == Qt::Key_Return || event->key() == Qt::Key_Enter ||
               event->key() == Qt::Key_Space) {
      choose();
    } else {
      event->ignore();
    }
  }

 private:
  void choose() {
    if (cursor_ < 0) return;
    const auto run = tradeoff_.points[static_cast<std::size_t>(cursor_)].run;
    document_.set_current(static_cast<int>(run));
  }

  [[nodiscard]] int colour_of(const Tradeoff::Point& p) const {
    return tradeoff_.families[p.family].colour;
  }
  [[nodiscard]] QPointF place(double footprint, double fidelity) const {
    return chart()->mapToScene(chart()->mapToPosition(QPointF(100 * footprint, 100 * fidelity),
                                                      chart()->series().front()));
  }
  [[nodiscard]] QPointF place(const Tradeoff::Point& p) const {
    return place(p.footprint, p.fidelity);
  }
  static QRectF box(const QPointF& centre, double size) {
    return {centre.x() - size / 2, centre.y() - size / 2, size, size};
  }

  [[nodiscard]] int nearest(const QPointF& at) const {
    int best = -1;
    double least = 14;
    for (std::size_t i = 0; i < tradeoff_.points.size(); ++i) {
      const double distance = QLineF(at, place(tradeoff_.points[i])).length();
      if (distance >= least) continue;
      least = distance;
      best = static_cast<int>(i);
    }
    return best;
  }

  QLineSeries* add_line(const QPen& pen) {
    auto* series = new QLineSeries;
    series->setPen(pen);
    chart()->addSeries(series);
    series->attachAxis(x_);
    series->attachAxis(y_);
    return series;
  }

  // Steps: what is reached with at most so much.
  void draw_front(const std::vector<std::size_t>& front) {
    QColor colour = theme().faint;
    colour.setAlphaF(0.5F);
    auto* steps = add_line(QPen(colour, 5, Qt::SolidLine, Qt::RoundCap, Qt::MiterJoin));
    double height = 0;
    for (std::size_t i = 0; i < front.size(); ++i) {
      const Tradeoff::Point& p = tradeoff_.points[front[i]];
      if (i > 0) steps->append(100 * p.footprint, 100 * height);
      steps->append(100 * p.footprint, 100 * p.fidelity);
      height = p.fidelity;
    }
  }

  void draw_family(const Tradeoff::Family& family) {
    if (family.points.size() < 2) return;
    QColor colour = run_colour(colour_of(tradeoff_.points[family.points.front()]));
    auto* line = add_line(QPen(colour, 1));
    for (const std::size_t i : family.points) {
      line->append(100 * tradeoff_.points[i].footprint, 100 * tradeoff_.points[i].fidelity);
    }
  }

  void draw_point(const Tradeoff::Point& p) {
    static constexpr std::array kShapes{
        QScatterSeries::MarkerShapeCircle, QScatterSeries::MarkerShapeRectangle,
        QScatterSeries::MarkerShapeTriangle, QScatterSeries::MarkerShapeRotatedRectangle};
    const int slot = colour_of(p);
    const QColor colour = run_colour(slot);
    auto* series = new QScatterSeries;
    series->setMarkerSize(kMarker);
    series->setMarkerShape(kShapes[static_cast<std::size_t>(slot) / 8 % kShapes.size()]);
    series->setColor(p.bound ? theme().paper : colour);
    series->setBorderColor(p.bound ? colour : theme().paper);
    series->setPen(QPen(p.bound ? colour : theme().paper, p.bound ? 1.8 : 0.8));
    series->append(100 * p.footprint, 100 * p.fidelity);
    chart()->addSeries(series);
    series->attachAxis(x_);
    series->attachAxis(y_);
  }

  static bool crosses(const QLineF& line, const QRectF& area) {
    if (area.contains(line.p1()) || area.contains(line.p2())) return true;
    const QPointF corners[] = {area.topLeft(), area.topRight(), area.bottomRight(),
                               area.bottomLeft(), area.topLeft()};
    for (int i = 0; i < 4; ++i) {
      if (line.intersects(QLineF(corners[i], corners[i + 1]), nullptr) ==
          QLineF::BoundedIntersection) {
        return true;
      }
    }
    return false;
  }

  // All lines of the plot, which labels keep clear of.
  [[nodiscard]] std::vector<QLineF> lines(double threshold_y, const QRectF& area) const {
    std::vector<QLineF> out{{area.left(), threshold_y, area.right(), threshold_y}};
    const auto at = [&](std::size_t i) { return place(tradeoff_.points[i]); };
    for (const Tradeoff::Family& family : tradeoff_.families) {
      for (std::size_t i = 1; i < family.points.size(); ++i) {
        out.emplace_back(at(family.points[i - 1]), at(family.points[i]));
      }
      if (family.critical) {
        out.emplace_back(at(*family.critical), QPointF(at(*family.critical).x(), area.bottom()));
      }
    }
    for (const Tradeoff::Group& group : tradeoff_.groups) {
      for (std::size_t i = 1; i < group.front.size(); ++i) {
        const QPointF from = at(group.front[i - 1]);
        const QPointF to = at(group.front[i]);
        out.emplace_back(from, QPointF(to.x(), from.y()));
        out.emplace_back(QPointF(to.x(), from.y()), to);
      }
    }
    return out;
  }

  // One label a family, beside the first of its points that has room for it.
  void draw_labels(QPainter& painter, const QRectF& area, std::vector<QRectF>& taken,
                   const std::vector<QLineF>& drawn) const {
    const double high = fontMetrics().height();
    for (const Tradeoff::Family& family : tradeoff_.families) {
      const QString text = QString::fromStdString(family.name);
      const double wide = fontMetrics().horizontalAdvance(text);
      const auto try_point = [&](const Tradeoff::Point& p) {
        const QPointF at = place(p);
        const double gap = kMarker / 2 + 4;
        std::vector<QPointF> corners{{at.x() + gap, at.y() - high / 2},
                                     {at.x() - gap - wide, at.y() - high / 2},
                                     {at.x() - wide / 2, at.y() - gap - high},
                                     {at.x() - wide / 2, at.y() + gap}};
        // Then further away, at the end of a line.
        for (const double side : {-1.0, 1.0}) {
          for (const int lines : {-1, 1, -2, 2, -3, 3}) {
            corners.emplace_back(side < 0 ? at.x() - kFar - wide : at.x() + kFar,
                                 at.y() + (lines - 0.5) * high);
          }
        }
        for (const QPointF& corner : corners) {
          const QRectF label(corner, QSizeF(wide, high));
          const bool free = area.contains(label) &&
                            std::none_of(taken.begin(), taken.end(),
                                         [&](const QRectF& other) {
                                           return other.intersects(label.adjusted(-2, 0, 2, 0));
                                         }) &&
                            std::none_of(drawn.begin(), drawn.end(), [&](const QLineF& line) {
                              return crosses(line, label.adjusted(0, 2, 0, -2));
                            });
          if (!free) continue;
          taken.push_back(label);
          painter.setPen(run_colour(colour_of(p)));
          if (std::abs(label.center().x() - at.x()) > wide / 2 + gap + 1) {
            const bool left = label.right() < at.x();
            painter.drawLine(
                at, QPointF(left ? label.right() + 2 : label.left() - 2, label.center().y()));
          }
          painter.drawText(label, Qt::AlignCenter | Qt::TextDontClip, text);
          return true;
        }
        return false;
      };
      // The last point is where a family's line ends; it is the clearest place.
      std::any_of(family.points.rbegin(), family.points.rend(),
                  [&](std::size_t i) { return try_point(tradeoff_.points[i]); });
    }
  }

  Document& document_;
  Tradeoff tradeoff_;
  double threshold_ = 0.9;
  int cursor_ = -1;
  QValueAxis *x_ = new QValueAxis, *y_ = new QValueAxis;  // of the chart
};

// The mark of a family before its name.
class FamilyDelegate final : public QStyledItemDelegate {
 public:
  using QStyledItemDelegate::QStyledItemDelegate;

 public:
  void paint(QPainter* painter, const QStyleOptionViewItem& option,
             const QModelIndex& index) const override {
    QStyledItemDelegate::paint(painter, option, index);
    if (index.column() != 0) return;
    QStyleOptionViewItem box = option;
    initStyleOption(&box, index);
    const QStyle* style = box.widget != nullptr ? box.widget->style() : QApplication::style();
    const QRectF place = style->subElementRect(QStyle::SE_ItemViewItemDecoration, &box, box.widget);
    painter->save();
    painter->setRenderHint(QPainter::Antialiasing);
    painter->setPen(Qt::NoPen);
    painter->setBrush(run_colour(index.data(CriticalTable::kColourRole).toInt()));
    painter->drawEllipse(place.center(), 4, 4);
    painter->restore();
  }

 protected:
  // Leaves room for the mark.
  void initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const override {
    QStyledItemDelegate::initStyleOption(option, index);
    if (index.column() != 0) return;
    option->decorationSize = QSize(10, 10);
    option->features |= QStyleOptionViewItem::HasDecoration;
  }
};

class TradeoffView final : public View {
 public:
  TradeoffView(Document& document, QWidget* parent) : View(document, parent) {
    auto* box = new QVBoxLayout(this);
    box->setContentsMargins(6, 4, 6, 4);
    box->setSpacing(4);
    controls_ = new QWidget(this);
    auto* controls = new QHBoxLayout(controls_);
    controls->setContentsMargins(0, 0, 0, 0);
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
    readout_ = new QLabel(this);
    readout_->setTextFormat(Qt::PlainText);
    readout_->setObjectName("readout");
    readout_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
    controls->addWidget(figure_);
    controls->addWidget(label);
    controls->addWidget(threshold_);
    controls->addSpacing(8);
    controls->addWidget(readout_, 1);
    box->addWidget(controls_);

    auto* row = new QHBoxLayout;
    plot_ = new Plot(document, this);
    row->addWidget(plot_, 5);
    table_ = new QTableView(this);
    model_ = new CriticalTable(this);
    table_->setModel(model_);
    table_->setItemDelegate(new FamilyDelegate(table_));
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
    table_->setMaximumWidth(460);
    row->addWidget(table_, 4);
    empty_ = new QLabel(this);
    empty_->setAlignment(Qt::AlignCenter);
    empty_->setWordWrap(true);
    box->addLayout(row, 1);
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
           "bounds "
           "are hollow, policies that differ only in numbers are joined, the grey steps are the "
           "Pareto front, and the table tells how little memory "
           "each policy needs for the threshold. Arrows move, Enter opens a run.";
  }

  void draw(QPainter& painter, const QSize& size) override {
    draw_without(*controls_, painter, size);
  }
  [[nodiscard]] std::string csv() const override {
    std::string text = csv_line({"policy", "label", "chunk", "footprint", "fidelity", "bound",
                                 "pareto", "critical", "family", "file"});
    const auto yes = [](bool is) { return csv_field(std::int64_t{is ? 1 : 0}); };
    for (const Tradeoff::Point& p : tradeoff_.points) {
      const ShownRun& shown = document().runs()[p.run];
      text +=
          csv_line({csv_field(std::string_view(shown.run().policy)),
                    csv_field(std::string_view(shown.run().label)),
                    csv_field(static_cast<std::int64_t>(shown.result->chunk)),
                    csv_field(p.footprint), csv_field(p.fidelity), yes(p.bound), yes(p.front),
                    yes(p.critical), csv_field(std::string_view(tradeoff_.families[p.family].name)),
                    csv_field(std::string_view(shown.result->path.filename().string()))});
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
      if (at->front) text += ", on the front";
      if (at->bound) text += ", a bound: reads the future";
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
  QComboBox* figure_ = nullptr;
  QDoubleSpinBox* threshold_ = nullptr;
  QLabel *readout_ = nullptr, *empty_ = nullptr;
  Plot* plot_ = nullptr;
  QTableView* table_ = nullptr;
  CriticalTable* model_ = nullptr;
};

}  // namespace

View* make_tradeoff_view(Document& document, QWidget* parent) {
  return new TradeoffView(document, parent);
}

}  // namespace kvspan::gui
