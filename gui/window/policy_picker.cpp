// SPDX-License-Identifier: Apache-2.0
#include "gui/window/policy_picker.h"

#include <QComboBox>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QLineEdit>
#include <QPushButton>
#include <QSortFilterProxyModel>
#include <QTableView>
#include <QTreeView>
#include <QVBoxLayout>
#include <algorithm>
#include <optional>
#include <utility>

#include "gui/model/policy_form.h"
#include "gui/paint/theme.h"
#include "gui/window/parameter_editors.h"
#include "gui/window/pieces.h"

namespace kvspan::gui {

PolicyPicker::PolicyPicker(std::function<Setting()> setting, QWidget* parent)
    : QWidget(parent), setting_(std::move(setting)), pause_(new QTimer(this)), judging_(nullptr) {
  pause_->setSingleShot(true);
  pause_->setInterval(kPauseMs);
  auto* box = new QVBoxLayout(this);
  box->setContentsMargins(0, 0, 0, 0);
  box->setSpacing(5);
  box->addWidget(heading("Policies", this));
  build_list(box);
  build_form(box);
  build_spec(box);
  setFocusProxy(search_);
  connect_all();
}

// Children go after the members, which they must not call any more.
PolicyPicker::~PolicyPicker() {
  for (QObject* child : findChildren<QObject*>()) child->disconnect(this);
}

QString PolicyPicker::spec() const { return bad_ ? QString() : spec_line_->text().trimmed(); }

void PolicyPicker::build_list(QVBoxLayout* box) {
  search_ = named(new QLineEdit(this), "search", "Part of a name, a class or a description");
  search_->setPlaceholderText("search");
  search_->setClearButtonEnabled(true);
  box->addWidget(search_);
  policies_ = new PolicyList(this);
  found_ = new QSortFilterProxyModel(this);
  found_->setSourceModel(policies_);
  found_->setRecursiveFilteringEnabled(true);
  found_->setFilterRole(PolicyList::kSearchRole);
  found_->setFilterCaseSensitivity(Qt::CaseInsensitive);
  tree_ = named(new QTreeView(this), "policies", "");
  tree_->setModel(found_);
  tree_->setHeaderHidden(true);
  tree_->setIndentation(12);
  tree_->setRootIsDecorated(false);
  tree_->setItemsExpandable(false);
  tree_->expandAll();
  take_the_rest(tree_, 104);
  box->addWidget(tree_, 3);
}

void PolicyPicker::build_form(QVBoxLayout* box) {
  auto* wrap_row = new QHBoxLayout;
  wrap_row->addWidget(new QLabel("wrapped in", this));
  wrapper_ = named(new QComboBox(this), "wrapper", "A wrapper that changes when the policy acts");
  wrapper_->addItem("nothing", QString());
  for (const QString& name : PolicyForm::wrappers()) {
    wrapper_->addItem(name + "(" + QChar(0x2026) + ")", name);
    wrapper_->setItemData(wrapper_->count() - 1,
                          QString::fromStdString(find_policy(name.toStdString()).summary),
                          Qt::ToolTipRole);
  }
  wrap_row->addWidget(wrapper_, 1);
  box->addLayout(wrap_row);
  form_ = new PolicyForm(this);
  form_table_ = named(new QTableView(this), "parameters", "");
  form_table_->setModel(form_);
  form_table_->setItemDelegate(new ParameterEditors(form_table_));
  form_table_->hideColumn(PolicyForm::kDefault);
  form_table_->hideColumn(PolicyForm::kHelp);
  form_table_->verticalHeader()->hide();
  form_table_->verticalHeader()->setDefaultSectionSize(form_table_->fontMetrics().height() + 6);
  form_table_->horizontalHeader()->hide();
  form_table_->horizontalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
  form_table_->horizontalHeader()->setSectionResizeMode(PolicyForm::kUnit, QHeaderView::Stretch);
  form_table_->setShowGrid(false);
  form_table_->setWordWrap(false);
  form_table_->setTabKeyNavigation(false);
  form_table_->setSelectionMode(QAbstractItemView::SingleSelection);
  form_table_->setEditTriggers(QAbstractItemView::AllEditTriggers);
  take_the_rest(form_table_, 96);
  box->addWidget(form_table_, 2);
}

void PolicyPicker::build_spec(QVBoxLayout* box) {
  auto* spec_row = new QHBoxLayout;
  spec_line_ = named(new QLineEdit(this), "specification",
                     "The policy as text; recipes (pyramid+snapkv) and sets (budget={5%,10%}) too");
  spec_line_->setPlaceholderText("snapkv(budget=10%)+kivi");
  add_ = named(new QPushButton("Add", this), "add to list", "Add to the list of runs (Enter)");
  add_->setMaximumWidth(56);
  spec_row->addWidget(spec_line_, 1);
  spec_row->addWidget(add_);
  box->addLayout(spec_row);
  message_ = small_label(this);
  box->addWidget(message_);
}

void PolicyPicker::connect_all() {
  connect(search_, &QLineEdit::textChanged, this, &PolicyPicker::search_changed);
  connect(search_, &QLineEdit::returnPressed, this, [this] { tree_->setFocus(); });
  connect(tree_->selectionModel(), &QItemSelectionModel::currentChanged, this,
          [this](const QModelIndex& now) { show_policy(now); });
  connect(tree_, &QTreeView::activated, this, &PolicyPicker::added);
  connect(wrapper_, &QComboBox::currentIndexChanged, this, [this] {
    if (!filling_) form_->set_wrapper(wrapper_->currentData().toString());
  });
  connect(form_, &PolicyForm::spec_changed, this, [this] {
    if (filling_) return;
    spec_line_->setText(form_->spec());
    spec_line_->setCursorPosition(0);
    judge();
  });
  connect(spec_line_, &QLineEdit::textEdited, this, [this] { spec_edited(); });
  connect(spec_line_, &QLineEdit::returnPressed, this, &PolicyPicker::added);
  connect(add_, &QPushButton::clicked, this, &PolicyPicker::added);
  connect(pause_, &QTimer::timeout, this, &PolicyPicker::judge);
}

void PolicyPicker::apply_theme() { set_colour(message_, bad_ ? theme().bad : theme().faint); }

void PolicyPicker::search_changed(const QString& text) {
  found_->setFilterFixedString(text);
  tree_->expandAll();
  // The first policy that is found is chosen.
  const QModelIndex klass = found_->index(0, 0);
  if (!text.isEmpty() && klass.isValid()) tree_->setCurrentIndex(found_->index(0, 0, klass));
}

void PolicyPicker::show_policy(const QModelIndex& index) {
  const QString name = index.data(PolicyList::kNameRole).toString();
  if (!name.isEmpty()) form_->set_policy(name);
}

// The form follows what is typed, where it can.
void PolicyPicker::spec_edited() {
  filling_ = true;
  const bool shown = form_->set_spec(spec_line_->text());
  if (shown) {
    wrapper_->setCurrentIndex(std::max(0, wrapper_->findData(form_->wrapper())));
    const QModelIndex of = policies_->find(form_->policy());
    if (!found_->mapFromSource(of).isValid()) search_->clear();
    tree_->setCurrentIndex(found_->mapFromSource(of));
  }
  form_table_->setEnabled(shown || spec_line_->text().isEmpty());
  filling_ = false;
  pause_->start();
}

// A policy may look long at the trace before it says what is wrong.
void PolicyPicker::judge() {
  const QString text = spec_line_->text();
  const auto show = [this, text](const QString& error) { show_judgement(text, error); };
  if (text.trimmed().isEmpty()) {
    judging_.cancel();
    return show("");
  }
  judging_.run(
      [text, setting = setting_()](const Background::Cancelled&) {
        std::optional<Geometry> of;
        if (setting.trace) of = geometry_of(*setting.trace, setting.options);
        return spec_error(text, of);
      },
      show, show);
}

void PolicyPicker::show_judgement(const QString& text, const QString& error) {
  bad_ = !error.isEmpty();
  QString said = error;
  if (!bad_ && form_->spec() == text && !form_->policy().isEmpty()) {
    said = QString::fromStdString(find_policy(form_->policy().toStdString()).summary);
  }
  message_->setText(breakable(said));
  add_->setEnabled(!bad_ && !text.trimmed().isEmpty());
  apply_theme();
}

}  // namespace kvspan::gui
