// SPDX-License-Identifier: Apache-2.0
#include "gui/window/simulate_panel.h"

#include <QComboBox>
#include <QEvent>
#include <QFileDialog>
#include <QFileInfo>
#include <QGridLayout>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QLineEdit>
#include <QListWidget>
#include <QProgressBar>
#include <QPushButton>
#include <QRegularExpression>
#include <QScrollArea>
#include <QShortcut>
#include <QSlider>
#include <QSortFilterProxyModel>
#include <QSpinBox>
#include <QStyledItemDelegate>
#include <QTabWidget>
#include <QTableView>
#include <QTimer>
#include <QToolButton>
#include <QTreeView>
#include <QVBoxLayout>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/policy_form.h"
#include "gui/model/simulation.h"
#include "gui/paint/theme.h"
#include "sim/report/lifetimes_file.h"

namespace kvspan::gui {
namespace {

constexpr int kRecent = 12;
constexpr int kPauseMs = 250;      // of typing, before a spec is judged
constexpr int kSliderSteps = 400;  // of a logarithmic scale

// ---- Pieces -------------------------------------------------------------------------------------

// Editors by the kind of a parameter: a spin box with unit and range, a combo box of words, a line.
class ParameterEditors final : public QStyledItemDelegate {
 public:
  using QStyledItemDelegate::QStyledItemDelegate;

  QWidget* createEditor(QWidget* parent, const QStyleOptionViewItem&,
                        const QModelIndex& index) const override {
    const Parameter& p = parameter(index);
    if (!p.words().empty()) {
      auto* words = new QComboBox(parent);
      for (const std::string& word : p.words()) words->addItem(QString::fromStdString(word));
      return words;
    }
    const QString value = index.data(Qt::EditRole).toString();
    bool whole = false;
    value.toInt(&whole);
    if (p.kind == Parameter::Kind::count && (whole || value == "auto")) {
      auto* number = new QSpinBox(parent);
      const auto bounded = [](double limit) {
        constexpr double kMost = std::numeric_limits<int>::max() - 1;
        return static_cast<int>(std::clamp(limit, -kMost, kMost));
      };
      number->setRange(bounded(p.range.lowest) - (may_be_auto(p) ? 1 : 0),
                       bounded(p.range.highest));
      if (may_be_auto(p)) number->setSpecialValueText("auto");
      if (!p.unit.empty()) number->setSuffix(QString::fromStdString(' ' + p.unit));
      number->setFrame(false);
      return number;
    }
    auto* line = new QLineEdit(parent);
    line->setPlaceholderText(QString::fromStdString(p.unit));
    line->setFrame(false);
    return line;
  }

  void setEditorData(QWidget* editor, const QModelIndex& index) const override {
    const QString value = index.data(Qt::EditRole).toString();
    if (auto* words = qobject_cast<QComboBox*>(editor)) {
      words->setCurrentText(value);
    } else if (auto* number = qobject_cast<QSpinBox*>(editor)) {
      number->setValue(value == "auto" ? number->minimum() : value.toInt());
    } else if (auto* line = qobject_cast<QLineEdit*>(editor)) {
      line->setText(value);
    }
  }

  void setModelData(QWidget* editor, QAbstractItemModel* model,
                    const QModelIndex& index) const override {
    if (auto* words = qobject_cast<QComboBox*>(editor)) {
      model->setData(index, words->currentText());
    } else if (auto* number = qobject_cast<QSpinBox*>(editor)) {
      const bool unset = may_be_auto(parameter(index)) && number->value() == number->minimum();
      model->setData(index, unset ? QString("auto") : QString::number(number->value()));
    } else if (auto* line = qobject_cast<QLineEdit*>(editor)) {
      model->setData(index, line->text());
    }
  }

 protected:
  void initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const override {
    QStyledItemDelegate::initStyleOption(option, index);
    if (index.column() == PolicyForm::kUnit) {
      option->palette.setColor(QPalette::Text, theme().faint);
    } else {
      option->font.setBold(index.data(PolicyForm::kChangedRole).toBool());
    }
  }

 private:
  static const Parameter& parameter(const QModelIndex& index) {
    return static_cast<const PolicyForm*>(index.model())->parameter(index.row());
  }
  static bool may_be_auto(const Parameter& p) { return p.fallback == "auto"; }
};

// A slider whose steps are equal ratios of [lowest, highest]; where it was set it stands for that
// very number, which may lie between two steps.
class LogSlider final : public QSlider {
 public:
  explicit LogSlider(QWidget* parent) : QSlider(Qt::Horizontal, parent) {
    setRange(0, kSliderSteps);
    setPageStep(kSliderSteps / 10);
  }
  void set_limits(TokenCount lowest, TokenCount highest) {
    lowest_ = lowest;
    highest_ = std::max(lowest, highest);
  }
  [[nodiscard]] TokenCount number() const {
    if (untouched()) return set_;
    const double ratio = static_cast<double>(value()) / kSliderSteps;
    return lowest_ - 1 + static_cast<TokenCount>(std::llround(std::pow(span(), ratio)));
  }
  void set_number(TokenCount number) {
    const double above = static_cast<double>(std::clamp(number, lowest_, highest_) - lowest_ + 1);
    setValue(span() <= 1 ? 0
                         : static_cast<int>(
                               std::lround(kSliderSteps * std::log(above) / std::log(span()))));
    set_ = number;
    set_at_ = value();
  }
  // True where set_number() left it.
  [[nodiscard]] bool untouched() const { return value() == set_at_; }

 private:
  [[nodiscard]] double span() const { return static_cast<double>(highest_ - lowest_ + 1); }
  TokenCount lowest_ = 1, highest_ = 1, set_ = 1;
  int set_at_ = -1;  // the value that stands for set_
};

// Lines may end after commas, slashes and brackets too: specs and paths are long words.
QString breakable(QString text) {
  static const QRegularExpression ends("([,/(+]|\\w{24})");
  return text.replace(ends, "\\1" + QString(QChar(0x200B)));
}

// As wide as the panel is, whatever it says.
QLabel* small_label(QWidget* parent) {
  auto* label = new QLabel(parent);
  label->setTextFormat(Qt::PlainText);
  label->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
  label->setWordWrap(true);
  QFont font = label->font();
  font.setPointSizeF(font.pointSizeF() * 0.92);
  label->setFont(font);
  label->setTextInteractionFlags(Qt::TextSelectableByMouse);
  return label;
}

QLabel* heading(const QString& text, QWidget* parent) {
  auto* label = new QLabel(text, parent);
  QFont font = label->font();
  font.setBold(true);
  label->setFont(font);
  return label;
}

void set_colour(QWidget* widget, const QColor& colour) {
  QPalette palette = widget->palette();
  palette.setColor(QPalette::WindowText, colour);
  widget->setPalette(palette);
}

template <class T>
T* named(T* widget, const QString& name, const QString& help) {
  widget->setObjectName(QString(name).replace(' ', '_'));
  widget->setAccessibleName(name);
  widget->setToolTip(help);
  return widget;
}

QScrollArea* scrolled(QWidget* page, QWidget* parent) {
  auto* area = new QScrollArea(parent);
  area->setWidget(page);
  area->setWidgetResizable(true);
  area->setFrameShape(QFrame::NoFrame);
  area->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
  return area;
}

// Takes what is left of the height, however little.
void take_the_rest(QAbstractScrollArea* area, int least) {
  area->setSizePolicy(QSizePolicy::Preferred, QSizePolicy::Ignored);
  area->setMinimumHeight(least);
}

// Is as narrow as a panel needs it.
void narrow(QComboBox* box, int letters) {
  box->setMinimumContentsLength(letters);
  box->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
}

}  // namespace

// ---- The panel ----------------------------------------------------------------------------------

struct SimulatePanel::Parts {
  Parts(Document& shared, SimulatePanel* self)
      : panel(self),
        document(shared),
        simulation("simulation"),
        live("what-if"),
        opening(nullptr),
        judging(nullptr),
        binding(nullptr) {}

  void build();
  void build_run_page(QWidget* page);
  void build_what_if_page(QWidget* page);
  void connect_all();
  void apply_theme();

  void open_trace();
  void remember_trace(const QString& path);
  void show_policy(const QModelIndex& index);
  void spec_edited();
  void judge();
  void add_to_list();
  void run();
  void say(const QString& text, bool bad);
  void show_busy();
  void note_budgets();
  void remove_closed();
  [[nodiscard]] SimulationRequest request() const;
  [[nodiscard]] Geometry geometry(const Trace& of) const;

  void bind();
  void slide(bool coarse);
  void show_what_if(const ResultPtr& result, bool coarse, qint64 milliseconds);
  void describe_sliders();

  SimulatePanel* panel;
  Document& document;

  // The page "Run".
  QTabWidget* pages = nullptr;
  QComboBox* trace_line = nullptr;
  QToolButton* browse = nullptr;
  QLabel* trace_facts = nullptr;
  QLineEdit* search = nullptr;
  PolicyList* policies = nullptr;
  QSortFilterProxyModel* found = nullptr;
  QTreeView* policy_tree = nullptr;
  QComboBox* wrapper = nullptr;
  PolicyForm* form = nullptr;
  QTableView* form_table = nullptr;
  QLineEdit* spec_line = nullptr;
  QPushButton* add = nullptr;
  QLabel* spec_message = nullptr;
  QLineEdit* budgets = nullptr;
  QLabel* budgets_note = nullptr;
  QListWidget* list = nullptr;
  QSpinBox *chunk = nullptr, *prompt = nullptr, *kv_bytes = nullptr, *seed = nullptr;
  QComboBox *rows = nullptr, *layout = nullptr, *prefill = nullptr;
  QPushButton *start = nullptr, *stop = nullptr;
  QProgressBar* progress = nullptr;
  QLabel* message = nullptr;
  bool filling = false;  // the spec line is being written by the form
  bool bad_message = false, bad_spec = false, bad_trace = false;

  // The page "What if".
  QLabel *what_policy = nullptr, *what_text = nullptr, *chunk_text = nullptr,
         *budget_text = nullptr, *what_message = nullptr;
  LogSlider *chunk_slider = nullptr, *budget_slider = nullptr;
  QTimer* rest = nullptr;  // a slider that is moved by keys is released when they rest
  struct Bound {
    Tunable tunable;
    bool turns = false;  // false: the policy has no knob, only the chunk can be changed
    TokenCount position = 1;
    std::string spec;
    SimulationRequest base;
    RowIndex prompt = 0;
    std::optional<double> footprint, mass;
    std::string origin;  // label
  };
  std::optional<Bound> bound;
  std::pair<ResultPtr, std::size_t> bound_run;  // the run that was current
  bool binding_sliders = false;

  int runs = 0;
  std::set<std::filesystem::path> on_disk;  // results whose files are there
  std::shared_ptr<const Trace> trace;       // of trace_line; null: none, or malformed
  QTimer* pause = nullptr;
  Simulation simulation;
  LiveSimulation live;
  Background opening, judging, binding;
};

SimulatePanel::SimulatePanel(Document& document, QWidget* parent)
    : QWidget(parent), parts_(std::make_unique<Parts>(document, this)) {
  parts_->build();
  parts_->connect_all();
  parts_->apply_theme();
}

SimulatePanel::~SimulatePanel() {
  // The widgets outlive the parts, which they must not call any more.
  for (QObject* child : findChildren<QObject*>()) child->disconnect(this);
}

bool SimulatePanel::busy() const { return parts_->simulation.busy() || parts_->live.busy(); }
void SimulatePanel::run() { parts_->run(); }
void SimulatePanel::cancel() { parts_->simulation.cancel(); }

void SimulatePanel::set_trace(const QString& path) {
  parts_->trace_line->setEditText(path);
  parts_->open_trace();
}

QStringList SimulatePanel::recent_traces() const {
  QStringList paths;
  for (int i = 0; i < parts_->trace_line->count(); ++i) {
    paths << parts_->trace_line->itemText(i);
  }
  return paths;
}

void SimulatePanel::set_recent_traces(const QStringList& paths) {
  const QString now = parts_->trace_line->currentText();
  parts_->trace_line->clear();
  parts_->trace_line->addItems(paths.mid(0, kRecent));
  parts_->trace_line->setEditText(now);
}

void SimulatePanel::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange) parts_->apply_theme();
  QWidget::changeEvent(event);
}

void SimulatePanel::Parts::build() {
  auto* box = new QVBoxLayout(panel);
  box->setContentsMargins(0, 0, 0, 0);
  pages = new QTabWidget(panel);
  pages->setDocumentMode(true);
  box->addWidget(pages);
  auto* run_page = new QWidget(pages);
  auto* what_page = new QWidget(pages);
  build_run_page(run_page);
  build_what_if_page(what_page);
  pages->addTab(scrolled(run_page, pages), "Run policies");
  pages->addTab(scrolled(what_page, pages), "What if");
  pause = new QTimer(panel);
  pause->setSingleShot(true);
  pause->setInterval(kPauseMs);
  rest = new QTimer(panel);
  rest->setSingleShot(true);
  rest->setInterval(2 * kPauseMs);
}

void SimulatePanel::Parts::build_run_page(QWidget* page) {
  auto* box = new QVBoxLayout(page);
  box->setContentsMargins(8, 8, 8, 8);
  box->setSpacing(5);

  box->addWidget(heading("Trace", page));
  auto* trace_row = new QHBoxLayout;
  trace_line = named(new QComboBox(page), "trace", "A trace (.safetensors), or one used before");
  trace_line->setEditable(true);
  trace_line->setInsertPolicy(QComboBox::NoInsert);
  narrow(trace_line, 12);
  browse = named(new QToolButton(page), "browse", "Choose a trace");
  browse->setText(QString(QChar(0x2026)));
  browse->setFocusPolicy(Qt::StrongFocus);
  trace_row->addWidget(trace_line, 1);
  trace_row->addWidget(browse);
  box->addLayout(trace_row);
  trace_facts = small_label(page);
  box->addWidget(trace_facts);

  box->addWidget(heading("Policies", page));
  search = named(new QLineEdit(page), "search", "Part of a name, a class or a description");
  search->setPlaceholderText("search");
  search->setClearButtonEnabled(true);
  box->addWidget(search);
  policies = new PolicyList(page);
  found = new QSortFilterProxyModel(page);
  found->setSourceModel(policies);
  found->setRecursiveFilteringEnabled(true);
  found->setFilterRole(PolicyList::kSearchRole);
  found->setFilterCaseSensitivity(Qt::CaseInsensitive);
  policy_tree = named(new QTreeView(page), "policies", "");
  policy_tree->setModel(found);
  policy_tree->setHeaderHidden(true);
  policy_tree->setIndentation(12);
  policy_tree->setRootIsDecorated(false);
  policy_tree->setItemsExpandable(false);
  policy_tree->expandAll();
  take_the_rest(policy_tree, 104);
  box->addWidget(policy_tree, 3);

  auto* wrap_row = new QHBoxLayout;
  wrap_row->addWidget(new QLabel("wrapped in", page));
  wrapper = named(new QComboBox(page), "wrapper", "A wrapper that changes when the policy acts");
  wrapper->addItem("nothing", QString());
  for (const QString& name : PolicyForm::wrappers()) {
    wrapper->addItem(name + "(" + QChar(0x2026) + ")", name);
    wrapper->setItemData(wrapper->count() - 1,
                         QString::fromStdString(find_policy(name.toStdString()).summary),
                         Qt::ToolTipRole);
  }
  wrap_row->addWidget(wrapper, 1);
  box->addLayout(wrap_row);
  form = new PolicyForm(page);
  form_table = named(new QTableView(page), "parameters", "");
  form_table->setModel(form);
  form_table->setItemDelegate(new ParameterEditors(form_table));
  form_table->hideColumn(PolicyForm::kDefault);
  form_table->hideColumn(PolicyForm::kHelp);
  form_table->verticalHeader()->hide();
  form_table->verticalHeader()->setDefaultSectionSize(form_table->fontMetrics().height() + 6);
  form_table->horizontalHeader()->hide();
  form_table->horizontalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
  form_table->horizontalHeader()->setSectionResizeMode(PolicyForm::kUnit, QHeaderView::Stretch);
  form_table->setShowGrid(false);
  form_table->setWordWrap(false);
  form_table->setTabKeyNavigation(false);
  form_table->setSelectionMode(QAbstractItemView::SingleSelection);
  form_table->setEditTriggers(QAbstractItemView::AllEditTriggers);
  take_the_rest(form_table, 96);
  box->addWidget(form_table, 2);

  auto* spec_row = new QHBoxLayout;
  spec_line = named(new QLineEdit(page), "specification",
                    "The policy as text; recipes (pyramid+snapkv) and sets (budget={5%,10%}) too");
  spec_line->setPlaceholderText("snapkv(budget=10%)+kivi");
  add = named(new QPushButton("Add", page), "add to list", "Add to the list of runs (Enter)");
  add->setMaximumWidth(56);
  spec_row->addWidget(spec_line, 1);
  spec_row->addWidget(add);
  box->addLayout(spec_row);
  spec_message = small_label(page);
  box->addWidget(spec_message);

  box->addWidget(heading("To run", page));
  list = named(new QListWidget(page), "runs", "Delete takes a policy off the list");
  take_the_rest(list, 56);
  box->addWidget(list, 1);

  auto* options = new QGridLayout;
  options->setHorizontalSpacing(6);
  options->setVerticalSpacing(3);
  const auto number = [&](const QString& name, const QString& help, const QString& none, int least,
                          int most, int value) {
    auto* spin = named(new QSpinBox(page), name, help);
    spin->setRange(least, most);
    spin->setValue(value);
    if (!none.isEmpty()) spin->setSpecialValueText(none);
    return spin;
  };
  const auto place = [&](int row, int column, const QString& name, QWidget* widget) {
    auto* label = new QLabel(name, page);
    label->setBuddy(widget);
    options->addWidget(label, row, 2 * column);
    options->addWidget(widget, row, 2 * column + 1);
  };
  constexpr int kMost = std::numeric_limits<int>::max();
  budgets = named(new QLineEdit(page), "budgets",
                  "One run each of every policy on the list that has a budget: tokens, % of the "
                  "prompt, or bytes");
  budgets->setPlaceholderText("5%, 10%, 20%");
  auto* budgets_label = new QLabel("&Budgets", page);
  budgets_label->setBuddy(budgets);
  options->addWidget(budgets_label, 0, 0);
  options->addWidget(budgets, 0, 1, 1, 3);
  budgets_note = small_label(page);
  budgets_note->setObjectName("budgets_note");
  options->addWidget(budgets_note, 1, 0, 1, 4);
  chunk = number("chunk", "Prefill chunk, tokens", "one pass", 0, kMost, 0);
  prompt = number("prompt", "Rows of the prompt; the rest is decoding", "as traced", 0, kMost, 0);
  rows = named(new QComboBox(page), "rows measured",
               "Rows of each phase whose fidelity is measured, evenly spread");
  rows->addItem("all rows", 0);
  for (const int count : {1024, 256, 64}) rows->addItem(QString("%1 rows").arg(count), count);
  rows->addItem("none", -1);
  layout = named(new QComboBox(page), "layout", "Storage layout that bytes are counted in");
  for (const std::string& name : standard_layouts()) layout->addItem(QString::fromStdString(name));
  for (QComboBox* combo : {rows, layout}) narrow(combo, 5);
  kv_bytes = number("bytes", "Bytes of one stored element", "", 1, 16, 2);
  seed = number("seed", "Of policies that draw random numbers", "", 0, kMost, 0);
  prefill = named(new QComboBox(page), "prefill",
                  "When a runtime compresses: after all layers, or layer by layer");
  prefill->addItems({"whole", "layerwise"});
  narrow(prefill, 5);
  place(2, 0, "&Chunk", chunk);
  place(2, 1, "&Prompt", prompt);
  place(3, 0, "Fidelity", rows);
  place(3, 1, "&Layout", layout);
  place(4, 0, "Bytes", kv_bytes);
  place(4, 1, "Prefill", prefill);
  place(5, 0, "Seed", seed);
  options->setColumnStretch(1, 1);
  options->setColumnStretch(3, 1);
  box->addLayout(options);

  auto* buttons = new QHBoxLayout;
  start = named(new QPushButton("Run", page), "run",
                "Run the list (Ctrl+Return with the keyboard in this panel)");
  stop = named(new QPushButton("Cancel", page), "cancel", "Stop; what is finished stays (Escape)");
  buttons->addWidget(start, 1);
  buttons->addWidget(stop);
  box->addLayout(buttons);
  progress = named(new QProgressBar(page), "progress", "");
  progress->setRange(0, 1000);
  progress->setTextVisible(true);
  box->addWidget(progress);
  message = small_label(page);
  message->setObjectName("message");
  box->addWidget(message);
  show_busy();
}

void SimulatePanel::Parts::build_what_if_page(QWidget* page) {
  auto* box = new QVBoxLayout(page);
  box->setContentsMargins(8, 8, 8, 8);
  box->setSpacing(6);
  what_policy = small_label(page);
  what_policy->setObjectName("what_policy");
  box->addWidget(what_policy);
  const auto slider = [&](const QString& name, const QString& help, QLabel** text) {
    *text = heading(name, page);
    box->addSpacing(6);
    box->addWidget(*text);
    auto* made = named(new LogSlider(page), name, help);
    (*text)->setBuddy(made);
    box->addWidget(made);
    return made;
  };
  budget_slider =
      slider("budget slider", "The policy's budget, or what else it is tuned by", &budget_text);
  chunk_slider =
      slider("chunk slider", "Prefill chunk; at the right end the prompt is one pass", &chunk_text);
  box->addSpacing(6);
  what_text = small_label(page);
  what_text->setObjectName("what_text");
  box->addWidget(what_text);
  what_message = small_label(page);
  what_message->setObjectName("what_message");
  box->addWidget(what_message);
  box->addStretch(1);
}

void SimulatePanel::Parts::connect_all() {
  connect(trace_line->lineEdit(), &QLineEdit::editingFinished, panel, [this] { open_trace(); });
  connect(trace_line, &QComboBox::activated, panel, [this] { open_trace(); });
  connect(browse, &QToolButton::clicked, panel, [this] {
    const QString path = QFileDialog::getOpenFileName(
        panel, "Trace", QFileInfo(trace_line->currentText()).path(),
        "Traces (*.safetensors *.safetensors.index.json);;All files (*)");
    if (!path.isEmpty()) panel->set_trace(path);
  });
  panel->setFocusProxy(search);
  connect(search, &QLineEdit::textChanged, panel, [this](const QString& text) {
    found->setFilterFixedString(text);
    policy_tree->expandAll();
    // The first policy that is found is chosen.
    const QModelIndex klass = found->index(0, 0);
    if (!text.isEmpty() && klass.isValid()) policy_tree->setCurrentIndex(found->index(0, 0, klass));
  });
  connect(search, &QLineEdit::returnPressed, panel, [this] { policy_tree->setFocus(); });
  connect(policy_tree->selectionModel(), &QItemSelectionModel::currentChanged, panel,
          [this](const QModelIndex& now) { show_policy(now); });
  connect(policy_tree, &QTreeView::activated, panel, [this] { add_to_list(); });
  connect(wrapper, &QComboBox::currentIndexChanged, panel, [this] {
    if (!filling) form->set_wrapper(wrapper->currentData().toString());
  });
  connect(form, &PolicyForm::spec_changed, panel, [this] {
    if (filling) return;
    spec_line->setText(form->spec());
    spec_line->setCursorPosition(0);
    judge();
  });
  connect(spec_line, &QLineEdit::textEdited, panel, [this] { spec_edited(); });
  connect(spec_line, &QLineEdit::returnPressed, panel, [this] { add_to_list(); });
  connect(add, &QPushButton::clicked, panel, [this] { add_to_list(); });
  connect(budgets, &QLineEdit::textChanged, panel, [this] { note_budgets(); });
  connect(pause, &QTimer::timeout, panel, [this] { judge(); });
  for (QSpinBox* spin : {chunk, prompt}) {
    connect(spin, &QSpinBox::valueChanged, panel, [this] { pause->start(); });
  }
  const auto take_off = [this] {
    delete list->takeItem(list->currentRow());
    show_busy();
  };
  auto* remove = new QShortcut(QKeySequence::Delete, list);
  remove->setContext(Qt::WidgetShortcut);
  connect(remove, &QShortcut::activated, panel, take_off);
  for (const auto key : {Qt::CTRL | Qt::Key_Return, Qt::CTRL | Qt::Key_Enter}) {
    auto* go = new QShortcut(QKeySequence(key), panel);
    go->setContext(Qt::WidgetWithChildrenShortcut);
    connect(go, &QShortcut::activated, panel, [this] { run(); });
  }
  auto* escape = new QShortcut(QKeySequence(Qt::Key_Escape), panel);
  escape->setContext(Qt::WidgetWithChildrenShortcut);
  connect(escape, &QShortcut::activated, panel, [this] { simulation.cancel(); });
  connect(start, &QPushButton::clicked, panel, [this] { run(); });
  connect(stop, &QPushButton::clicked, panel, [this] { simulation.cancel(); });

  connect(&simulation, &Simulation::progressed, panel, [this](double share, const QString& text) {
    progress->setValue(static_cast<int>(share * 1000));
    progress->setFormat(text);
  });
  connect(&simulation, &Simulation::grown, panel,
          [this](const ResultPtr& result, int finished, int total) {
            on_disk.insert(result->path);
            document.add(result);
            say(QString("%1 of %2 runs finished").arg(finished).arg(total), false);
          });
  connect(&simulation, &Simulation::finished, panel, [this](const ResultPtr& result) {
    const auto runs_done = result->runs.size();
    say(QString("%1 run%2 finished").arg(runs_done).arg(runs_done == 1 ? "" : "s"), false);
    show_busy();
    emit panel->finished(result);
  });
  connect(&simulation, &Simulation::failed, panel, [this](const QString& line) {
    say(line, true);
    show_busy();
    emit panel->failed(line);
  });
  connect(&simulation, &Simulation::cancelled, panel, [this] {
    say("cancelled; what was finished is kept", false);
    show_busy();
  });

  connect(&document, &Document::runs_changed, panel, [this] { remove_closed(); });
  connect(&document, &Document::current_changed, panel, [this] {
    if (trace_line->currentText().isEmpty() && document.current_run() != nullptr) {
      // The file may have moved since the result was written.
      const auto there = document.trace_of(*document.current_run()->result);
      if (there) panel->set_trace(QString::fromStdString(there->name()));
    }
    bind();
  });
  connect(pages, &QTabWidget::currentChanged, panel, [this] { bind(); });
  for (LogSlider* slider : {chunk_slider, budget_slider}) {
    connect(slider, &QSlider::valueChanged, panel, [this, slider] {
      describe_sliders();
      if (binding_sliders) return;
      slide(true);
      if (!slider->isSliderDown()) rest->start();
    });
    connect(slider, &QSlider::sliderReleased, panel, [this] {
      rest->stop();
      slide(false);
    });
  }
  connect(rest, &QTimer::timeout, panel, [this] { slide(false); });
  connect(&live, &LiveSimulation::shown, panel,
          [this](const ResultPtr& result, bool coarse, qint64 ms) {
            show_what_if(result, coarse, ms);
          });
  connect(&live, &LiveSimulation::failed, panel, [this](const QString& line) {
    what_message->setText(breakable(line));
    emit panel->failed(line);
  });
  bind();
  judge();
}

void SimulatePanel::Parts::apply_theme() {
  set_colour(trace_facts, bad_trace ? theme().bad : theme().faint);
  set_colour(spec_message, bad_spec ? theme().bad : theme().faint);
  set_colour(message, bad_message ? theme().bad : theme().faint);
  set_colour(budgets_note, theme().faint);
  set_colour(what_message, theme().faint);
}

// ---- Trace, policy, list ------------------------------------------------------------------------

void SimulatePanel::Parts::open_trace() {
  const QString path = trace_line->currentText().trimmed();
  if (trace && trace->name() == path.toStdString()) return;
  trace.reset();
  if (path.isEmpty()) return;
  const auto show = [this](const QString& text, bool bad) {
    trace_facts->setText(breakable(text));
    bad_trace = bad;
    if (!bad && bad_message) message->clear();
    apply_theme();
    judge();
  };
  opening.run(
      [file = path.toStdString()](const Background::Cancelled&) {
        return std::make_shared<const Trace>(Trace::open(file));
      },
      [this, path, show](const std::shared_ptr<const Trace>& opened) {
        trace = opened;
        const TraceMeta& m = trace->meta();
        remember_trace(path);
        show(QString("%1 tokens, prompt %2; %3 of %4 layers; %5 KV heads")
                 .arg(count_text(m.tokens), count_text(m.prompt_tokens))
                 .arg(m.layers)
                 .arg(m.model_layers)
                 .arg(m.kv_heads),
             false);
        const int most = static_cast<int>(std::min<std::int64_t>(m.tokens, 1 << 30));
        chunk->setMaximum(most);
        prompt->setMaximum(most);
      },
      [show](const QString& line) { show(line, true); });
}

void SimulatePanel::Parts::remember_trace(const QString& path) {
  QStringList paths = panel->recent_traces();
  paths.removeAll(path);
  paths.prepend(path);
  panel->set_recent_traces(paths);
}

void SimulatePanel::Parts::show_policy(const QModelIndex& index) {
  const QString name = index.data(PolicyList::kNameRole).toString();
  if (name.isEmpty()) return;
  form->set_policy(name);
}

// The form follows what is typed, where it can.
void SimulatePanel::Parts::spec_edited() {
  filling = true;
  const bool shown = form->set_spec(spec_line->text());
  if (shown) {
    wrapper->setCurrentIndex(std::max(0, wrapper->findData(form->wrapper())));
    const QModelIndex of = policies->find(form->policy());
    if (!found->mapFromSource(of).isValid()) search->clear();
    policy_tree->setCurrentIndex(found->mapFromSource(of));
  }
  form_table->setEnabled(shown || spec_line->text().isEmpty());
  filling = false;
  pause->start();
}

Geometry SimulatePanel::Parts::geometry(const Trace& of) const {
  return geometry_of(of, request().options());
}

// What is wrong with the spec; a policy may look long at the trace before it says so.
void SimulatePanel::Parts::judge() {
  const QString text = spec_line->text();
  const auto show = [this, text](const QString& error) {
    bad_spec = !error.isEmpty();
    QString said = error;
    if (!bad_spec && form->spec() == text && !form->policy().isEmpty()) {
      said = QString::fromStdString(find_policy(form->policy().toStdString()).summary);
    }
    spec_message->setText(breakable(said));
    add->setEnabled(!bad_spec && !text.trimmed().isEmpty());
    apply_theme();
  };
  if (text.trimmed().isEmpty()) {
    judging.cancel();
    return show("");
  }
  judging.run(
      [text, options = request().options(), held = trace](const Background::Cancelled&) {
        std::optional<Geometry> of;
        if (held) of = geometry_of(*held, options);
        return spec_error(text, of);
      },
      show, show);
}

void SimulatePanel::Parts::add_to_list() {
  const QString spec = spec_line->text().trimmed();
  if (spec.isEmpty() || bad_spec) return;
  if (list->findItems(spec, Qt::MatchExactly).isEmpty()) list->addItem(spec);
  list->setCurrentRow(list->count() - 1);
  show_busy();
}

SimulationRequest SimulatePanel::Parts::request() const {
  SimulationRequest out;
  out.trace = trace_line->currentText().trimmed().toStdString();
  for (int i = 0; i < list->count(); ++i) out.specs.push_back(list->item(i)->text().toStdString());
  static const QRegularExpression comma("[,\\s]+");
  for (const QString& budget : budgets->text().split(comma, Qt::SkipEmptyParts)) {
    out.budgets.push_back(budget.toStdString());
  }
  out.chunk = chunk->value();
  out.prompt = prompt->value();
  out.fidelity = rows->currentData().toInt() >= 0;
  out.fidelity_rows = std::max(0, rows->currentData().toInt());
  out.kv_bytes = kv_bytes->value();
  out.layerwise = prefill->currentText() == "layerwise";
  out.layout = layout->currentText().toStdString();
  out.seed = static_cast<std::uint64_t>(seed->value());
  return out;
}

void SimulatePanel::Parts::run() {
  if (list->count() == 0) add_to_list();
  const SimulationRequest wanted = request();
  if (wanted.trace.empty()) return say("choose a trace first", true);
  if (wanted.specs.empty()) return say("add a policy to the list first", true);
  simulation.set_name(QString("simulation %1").arg(++runs));
  simulation.start(wanted);
  say("", false);
  show_busy();
}

// Files of results that nobody can open any more.
void SimulatePanel::Parts::remove_closed() {
  std::set<std::filesystem::path> open;
  for (const ResultPtr& result : document.results()) open.insert(result->path);
  if (simulation.busy()) open.insert(simulation.path());
  std::erase_if(on_disk, [&](const std::filesystem::path& path) {
    if (open.contains(path)) return false;
    remove_temporary(path);
    return true;
  });
}

void SimulatePanel::Parts::say(const QString& text, bool bad) {
  message->setText(breakable(text));
  bad_message = bad;
  apply_theme();
}

void SimulatePanel::Parts::show_busy() {
  const bool busy = simulation.busy();
  start->setText(list->count() < 2 ? "Run" : QString("Run %1 policies").arg(list->count()));
  stop->setEnabled(busy);
  progress->setVisible(busy);
  if (!busy) progress->setValue(0);
  note_budgets();
}

// Whom the field of budgets does not change.
void SimulatePanel::Parts::note_budgets() {
  const SimulationRequest wanted = request();
  std::size_t unchanged = 0;
  for (const std::string& spec : wanted.specs) {
    try {
      const auto texts = [&](const std::vector<std::string>& sizes) {
        std::vector<std::string> out;
        for (const RecipeSpec& one : expand_policies({spec}, sizes)) out.push_back(to_text(one));
        return out;
      };
      if (texts({}) == texts({"1"})) ++unchanged;
    } catch (const Error&) {
      continue;  // said when it runs
    }
  }
  const bool shown = unchanged > 0 && !wanted.budgets.empty();
  budgets_note->setVisible(shown);
  if (!shown) return;
  budgets_note->setText(QString("%1 of %2 policies: a budget of their own, or none to set")
                            .arg(unchanged)
                            .arg(wanted.specs.size()));
}

// ---- What if ------------------------------------------------------------------------------------

void SimulatePanel::Parts::bind() {
  if (pages->currentIndex() != 1) return;
  const ShownRun* shown = document.current_run();
  const std::pair now(shown == nullptr ? nullptr : shown->result,
                      shown == nullptr ? 0 : shown->index);
  if (now == bound_run && now.first != nullptr) return;
  bound_run = now;
  // The sliders already say what is shown.
  if (now.first != nullptr && bound && now.first->path == live.path()) return;
  bound.reset();
  binding.cancel();
  const auto unbound = [this](const QString& why) {
    what_policy->setText(breakable(why));
    what_text->clear();
    what_message->clear();
    for (LogSlider* slider : {chunk_slider, budget_slider}) slider->setEnabled(false);
    describe_sliders();
  };
  if (shown == nullptr) {
    return unbound("Open a result or run a policy; the sliders then run the current one again.");
  }
  QString why;
  const auto held = document.trace_of(*shown->result, &why);
  if (!held) return unbound("The sliders need the trace: " + why);
  unbound("");
  Bound begun;
  const Result& result = *shown->result;
  begun.base.trace = held->name();
  begun.base.chunk = result.chunk;
  begun.base.prompt = result.trace.prompt;
  begun.base.kv_bytes = result.kv_bytes;
  begun.base.layerwise = result.prefill == "layerwise";
  begun.base.layout = result.layout;
  if (result.lifetimes) {
    begun.base.evict_at = result.lifetimes->runs()[shown->index].evict_at;
  }
  begun.prompt = begun.base.evict_at != 0 ? begun.base.evict_at : result.trace.prompt;
  begun.footprint = figure(shown->run(), "footprint");
  begun.mass = retained_mass(shown->run());
  begun.origin = shown->run().label;
  binding.run(
      [held, begun, policy = shown->run().policy](const Background::Cancelled&) {
        Bound out = begun;
        const Geometry geometry = geometry_of(*held, out.base.options());
        // The short text, if it means the same.
        out.spec = policy;
        try {
          if (make_policy(out.origin, geometry).spec == policy) out.spec = out.origin;
        } catch (const Error&) {
          out.spec = policy;
        }
        auto tunable = make_tunable(parse_spec(out.spec), geometry);
        out.turns = tunable.has_value();
        if (tunable) {
          out.tunable = std::move(*tunable);
          out.position = knob_position(out.tunable, out.prompt);
        }
        return out;
      },
      [this](const Bound& done) {
        bound = done;
        binding_sliders = true;
        what_policy->setText(breakable(QString::fromStdString(
            bound->origin +
            (bound->turns ? "" : "\nhas nothing to tune; the chunk can be changed"))));
        budget_slider->setEnabled(bound->turns);
        chunk_slider->setEnabled(true);
        if (bound->turns) {
          budget_slider->set_limits(bound->tunable.knob.lowest, bound->tunable.knob.highest);
          budget_slider->set_number(bound->position);
        }
        chunk_slider->set_limits(std::min<RowIndex>(16, bound->prompt), bound->prompt);
        chunk_slider->set_number(bound->base.chunk == 0 ? bound->prompt : bound->base.chunk);
        binding_sliders = false;
        describe_sliders();
      },
      [unbound](const QString& line) { unbound(line); });
}

void SimulatePanel::Parts::describe_sliders() {
  if (!bound) {
    budget_text->setText("budget");
    chunk_text->setText("chunk");
    return;
  }
  if (bound->turns) {
    budget_text->setText(knob_text(bound->tunable, budget_slider->number(), bound->prompt));
  }
  const RowIndex size = chunk_slider->number();
  const RowIndex passes = (bound->prompt + size - 1) / size;
  chunk_text->setText(passes == 1 ? QString("chunk: the prompt in one pass")
                                  : QString("chunk %1 (%2 passes)").arg(size).arg(passes));
}

void SimulatePanel::Parts::slide(bool coarse) {
  if (!bound) return;
  SimulationRequest wanted = bound->base;
  const SimulationRequest options = request();
  wanted.fidelity = options.fidelity;
  wanted.fidelity_rows = options.fidelity_rows;
  wanted.chunk = chunk_slider->number() >= bound->prompt ? 0 : chunk_slider->number();
  const bool turned = bound->turns && !budget_slider->untouched();
  wanted.specs = {turned ? to_text(bound->tunable.at(budget_slider->number())) : bound->spec};
  live.show(wanted, coarse);
}

void SimulatePanel::Parts::show_what_if(const ResultPtr& result, bool coarse, qint64 ms) {
  document.add(result);
  if (!bound) return;  // something else was made current meanwhile
  for (std::size_t r = 0; r < document.runs().size(); ++r) {
    if (document.runs()[r].result == result) document.set_current(static_cast<int>(r));
  }
  const Run& run = result->runs.front();
  const auto line = [](const QString& name, std::optional<double> now, std::optional<double> was) {
    QString text = name + " " + percent_text(now);
    if (now && was) {
      const double points = 100 * (*now - *was);
      text += QString(" (%1%2 points)").arg(points < 0 ? "" : "+").arg(points, 0, 'f', 1);
    }
    return text + "\n";
  };
  QString text = line("KV footprint", figure(run, "footprint"), bound->footprint);
  if (const auto peak = figure(run, "peak_bytes.total")) text += "peak " + bytes_text(*peak) + "\n";
  text += coarse ? QString("retained attention: when released")
                 : line("retained attention", retained_mass(run), bound->mass).trimmed();
  what_text->setText(text);
  what_message->setText(QString(coarse ? "coarse, %1 ms" : "measured in %1 ms").arg(ms));
}

}  // namespace kvspan::gui
