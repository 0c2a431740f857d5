// SPDX-License-Identifier: Apache-2.0
// The map of lifetimes with its controls, its legend and what is known of a token.
#include <QComboBox>
#include <QGridLayout>
#include <QHBoxLayout>
#include <QLabel>
#include <QProgressBar>
#include <QTextDocument>
#include <QToolButton>
#include <QVBoxLayout>
#include <array>

#include "gui/model/lives.h"
#include "gui/paint/lifetime_map.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

// The legend of the window.
class Legend final : public QWidget {
 public:
  Legend(const LifetimeMap& canvas, QWidget* parent) : QWidget(parent), canvas_(canvas) {
    setMinimumHeight(LifetimeMap::kLegendHeight);
  }

 protected:
  void paintEvent(QPaintEvent* /*event*/) override {
    QPainter painter(this);
    canvas_.paint_legend(painter, rect());
  }

 private:
  const LifetimeMap& canvas_;
};

class LifetimeView final : public View {
  Q_OBJECT
 public:
  LifetimeView(Document& document, QWidget* parent) : View(document, parent) {
    layer_ = new QComboBox(this);
    layer_->setAccessibleName("Layer");
    head_ = new QComboBox(this);
    head_->setAccessibleName("Head");
    attention_ = new QToolButton(this);
    attention_->setText("Attention");
    attention_->setCheckable(true);
    attention_->setToolTip("Show the attention of this head, and what of it was lost (A)");
    beside_ = new QToolButton(this);
    beside_->setText("Beside baseline");
    beside_->setCheckable(true);
    beside_->setToolTip(
        "Also show the baseline's map: full, or the best plan, of kvspan run --regret --optimum");
    auto* fit = new QToolButton(this);
    fit->setText("Fit");
    fit->setToolTip("Show all tokens and rows (Home)");
    busy_ = new QProgressBar(this);
    busy_->setRange(0, 0);
    busy_->setMaximumWidth(90);
    busy_->setTextVisible(false);
    busy_->setAccessibleName("Attention is being computed");
    cancel_ = new QToolButton(this);
    cancel_->setText("Cancel");
    cancel_->setToolTip("Stop computing attention (Escape)");
    canvas_ = new LifetimeMap(document, this);
    other_ = new LifetimeMap(document, this, LifetimeMap::Of::baseline);
    legend_ = new Legend(*canvas_, this);
    facts_ = new QLabel(this);
    facts_->setObjectName("readout");
    facts_->setTextFormat(Qt::PlainText);
    facts_->setTextInteractionFlags(Qt::TextSelectableByMouse);
    facts_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Fixed);
    facts_->setAccessibleName("The focused token");
    titles_ = {new QLabel(this), new QLabel(this)};

    auto* bar = new QHBoxLayout;
    bar->setContentsMargins(6, 4, 10, 0);
    for (QWidget* widget :
         std::initializer_list<QWidget*>{layer_, head_, attention_, beside_, fit, busy_, cancel_}) {
      bar->addWidget(widget);
    }
    bar->addWidget(legend_, 1);
    auto* all = new QVBoxLayout(this);
    all->setContentsMargins(0, 0, 0, 4);
    all->setSpacing(2);
    all->addLayout(bar);
    auto* maps = new QGridLayout;
    maps->setSpacing(2);
    for (int i = 0; i < 2; ++i) {
      QLabel* title = titles_[static_cast<std::size_t>(i)];
      title->setTextFormat(Qt::PlainText);
      title->setAlignment(Qt::AlignHCenter);
      title->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Fixed);
      maps->addWidget(title, 0, i);
      maps->addWidget(i == 0 ? canvas_ : other_, 1, i);
      maps->setColumnStretch(i, 1);
    }
    maps->setRowStretch(1, 1);
    all->addLayout(maps, 1);
    auto* line = new QHBoxLayout;
    line->setContentsMargins(10, 0, 10, 0);
    line->addWidget(facts_);
    all->addLayout(line);
    setFocusProxy(canvas_);

    for (LifetimeMap* map : {canvas_, other_}) {
      map->changed = [this] {
        show_state();
        if (is_ready()) emit ready();
      };
    }
    canvas_->moved = [this] { other_->set_tokens(canvas_->tokens()); };
    other_->moved = [this] { canvas_->set_tokens(other_->tokens()); };
    connect(layer_, &QComboBox::activated, this, &LifetimeView::choose_head);
    connect(head_, &QComboBox::activated, this, &LifetimeView::choose_head);
    connect(attention_, &QToolButton::clicked, canvas_,
            [this](bool on) { canvas_->set_attention(on); });
    connect(beside_, &QToolButton::clicked, this, [this](bool on) {
      Display display = this->document().display();
      display.beside = on;
      this->document().set_display(display);
    });
    connect(fit, &QToolButton::clicked, canvas_, [this] { canvas_->fit(); });
    connect(cancel_, &QToolButton::clicked, canvas_, [this] { canvas_->set_attention(false); });
    connect(&document, &Document::runs_changed, this, &LifetimeView::follow);
    connect(&document, &Document::current_changed, this, &LifetimeView::follow);
    connect(&document, &Document::focus_changed, this, &LifetimeView::follow);
    for (LifetimeMap* map : {canvas_, other_}) {
      connect(&document, &Document::display_changed, map, [map] { map->follow_display(); });
      connect(&document, &Document::zoom_changed, map, [map] { map->request(); });
      connect(&document, &Document::selection_changed, map, [map] { map->update(); });
    }
    connect(&document, &Document::display_changed, this, [this] { show_beside(); });
    follow();
    show_beside();
  }

  [[nodiscard]] QString name() const override { return "lifetimes"; }
  [[nodiscard]] QString title() const override { return "Token lifetimes"; }
  [[nodiscard]] QString help() const override {
    return "When each entry of one head is held, read and evicted; A adds attention, the wheel or "
           "a box zooms, Page Up and Down change the head, arrows the token and the row. Beside it "
           "the baseline's, on the same tokens and rows.";
  }
  [[nodiscard]] bool is_ready() const override {
    return canvas_->is_ready() && (!beside() || other_->is_ready());
  }
  [[nodiscard]] std::string csv() const override {
    if (!canvas_->shown()) return {};
    const WhichHead& of = *canvas_->shown();
    return csv_of_lives(*of.result->lifetimes, static_cast<int>(of.run), of.layer, of.head,
                        canvas_->trace().get(), canvas_->attention().get());
  }
  void draw(QPainter& painter, const QSize& size) override {
    painter.setFont(font());
    const double scale = painter.device()->devicePixelRatioF();
    const QSize one(beside() ? size.width() / 2 : size.width(), size.height());
    canvas_->draw(painter, one, scale);
    canvas_->request();
    if (!beside()) return;
    painter.save();
    painter.translate(size.width() - one.width(), 0);
    other_->draw(painter, one, scale);
    painter.restore();
    other_->request();
  }

 private:
  [[nodiscard]] bool beside() const { return document().display().beside; }
  void show_beside() {
    beside_->setChecked(beside());
    other_->setVisible(beside());
    for (QLabel* title : titles_) title->setVisible(beside());
    if (!beside()) return;
    other_->follow();
    other_->set_tokens(canvas_->tokens());
  }
  void follow() {
    canvas_->follow();
    other_->follow();
    if (beside()) other_->set_tokens(canvas_->tokens());
  }
  void choose_head() {
    Focus focus = document().focus();
    focus.layer = layer_->currentIndex();
    focus.head = head_->currentIndex();
    document().set_focus(focus);
  }
  void show_state() {
    const auto& shown = canvas_->shown();
    const int layers = shown ? shown->result->trace.layers() : 0;
    const int heads = shown ? shown->result->runs[shown->run].heads : 0;
    layer_->setEnabled(shown.has_value());
    head_->setEnabled(shown.has_value());
    attention_->setEnabled(shown.has_value());
    QStringList names;
    for (int l = 0; l < layers; ++l) names << layer_label(shown->result->trace, l);
    fill(layer_, names, shown ? shown->layer : -1);
    names.clear();
    for (int h = 0; h < heads; ++h) names << QString("head %1").arg(h);
    fill(head_, names, shown ? shown->head : -1);
    attention_->setChecked(canvas_->wants_attention());
    busy_->setVisible(canvas_->is_busy());
    cancel_->setVisible(canvas_->is_busy());
    legend_->update();
    titles_[0]->setText(canvas_->title());
    titles_[1]->setText(other_->title());
    const std::int64_t token = document().focus().token;
    facts_->setText(!canvas_->message().isEmpty() ? canvas_->message()
                    : !shown                      ? QString()
                    : token < 0 ? "Click, or use the arrow keys, to choose a token and a row."
                                : canvas_->facts(token));
    facts_->setToolTip(Qt::convertFromPlainText(facts_->text()));
  }
  static void fill(QComboBox* box, const QStringList& names, int current) {
    QStringList now;
    for (int i = 0; i < box->count(); ++i) now << box->itemText(i);
    if (now != names) {
      box->clear();
      box->addItems(names);
    }
    box->setCurrentIndex(current);
  }

  QComboBox *layer_, *head_;
  QToolButton *attention_, *cancel_;
  QProgressBar* busy_;
  LifetimeMap *canvas_ = nullptr, *other_ = nullptr;  // other_: of the baseline
  QToolButton* beside_ = nullptr;
  std::array<QLabel*, 2> titles_{};
  Legend* legend_;
  QLabel* facts_;
};

}  // namespace

View* make_lifetime_view(Document& document, QWidget* parent) {
  return new LifetimeView(document, parent);
}

}  // namespace kvspan::gui

#include "lifetime_view.moc"
