// SPDX-License-Identifier: Apache-2.0
#include "gui/model/policy_form.h"

#include <QStringList>
#include <algorithm>
#include <utility>

#include "sim/base/error.h"
#include "sim/run/run.h"

namespace kvspan::gui {
namespace {

QString text_of(const std::string& text) { return QString::fromStdString(text); }

// Errors: ConfigError at an unknown name or key, or a value out of range.
void check_terms(const RecipeSpec& spec) {
  for (const Term& term : spec) {
    const PolicyEntry& entry = find_policy(term.name);
    (void)Arguments(term, entry.parameters);
    check_terms(term.inner);
  }
}

}  // namespace

// ---- The list -----------------------------------------------------------------------------------

PolicyList::PolicyList(QObject* parent) : QAbstractItemModel(parent) {
  for (const PolicyEntry& entry : registry()) {
    if (entry.wrapper) continue;
    const QString name = text_of(std::string(kvspan::text_of(entry.kind)));
    auto at = std::find_if(classes_.begin(), classes_.end(),
                           [&](const Class& c) { return c.name == name; });
    if (at == classes_.end()) at = classes_.insert(at, {name, {}});
    at->policies.push_back(&entry);
  }
}

// Ids: 0 for a class, 1 + the class's row for a policy.
QModelIndex PolicyList::index(int row, int column, const QModelIndex& parent) const {
  if (!hasIndex(row, column, parent)) return {};
  return createIndex(row, column, parent.isValid() ? static_cast<quintptr>(parent.row()) + 1 : 0);
}

QModelIndex PolicyList::parent(const QModelIndex& child) const {
  if (!child.isValid() || child.internalId() == 0) return {};
  return createIndex(static_cast<int>(child.internalId()) - 1, 0, quintptr{0});
}

int PolicyList::rowCount(const QModelIndex& parent) const {
  if (!parent.isValid()) return static_cast<int>(classes_.size());
  if (parent.internalId() != 0 || parent.column() != 0) return 0;
  return static_cast<int>(classes_[static_cast<std::size_t>(parent.row())].policies.size());
}

int PolicyList::columnCount(const QModelIndex&) const { return 1; }

QVariant PolicyList::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const auto row = static_cast<std::size_t>(index.row());
  if (index.internalId() == 0) {
    if (role == Qt::DisplayRole) return classes_[row].name;
    if (role == kSearchRole) return QString();
    return {};
  }
  const PolicyEntry& entry = *classes_[index.internalId() - 1].policies[row];
  switch (role) {
    case Qt::DisplayRole:
    case kNameRole:
      return text_of(entry.name);
    case kSearchRole:
      return text_of(entry.name + ' ' + std::string(kvspan::text_of(entry.kind)) + ' ' +
                     entry.summary);
    case Qt::ToolTipRole:
      return text_of(entry.summary + "\n" + entry.source +
                     (entry.needs.empty() ? "" : "\nneeds " + entry.needs) +
                     (entry.alone.empty() ? "" : "\nnot alone: " + entry.alone));
    default:
      return {};
  }
}

QModelIndex PolicyList::find(const QString& policy) const {
  for (int c = 0; c < rowCount({}); ++c) {
    const QModelIndex parent = index(c, 0, {});
    for (int p = 0; p < rowCount(parent); ++p) {
      const QModelIndex found = index(p, 0, parent);
      if (found.data(kNameRole).toString() == policy) return found;
    }
  }
  return {};
}

// ---- The form -----------------------------------------------------------------------------------

PolicyForm::PolicyForm(QObject* parent) : QAbstractTableModel(parent) {}

std::vector<QString> PolicyForm::wrappers() {
  std::vector<QString> names;
  for (const PolicyEntry& entry : registry()) {
    if (entry.wrapper) names.push_back(text_of(entry.name));
  }
  return names;
}

bool PolicyForm::Row::changed() const { return value != text_of(parameter->fallback); }

void PolicyForm::set_entries(const PolicyEntry* wrapper, const PolicyEntry* policy) {
  if (wrapper == wrapper_ && policy == policy_) return;
  beginResetModel();
  const std::vector<Row> before = std::exchange(rows_, {});
  wrapper_ = wrapper;
  policy_ = policy;
  for (const PolicyEntry* entry : {wrapper, policy}) {
    if (entry == nullptr) continue;
    for (const Parameter& p : entry->parameters) {
      const auto old = std::find_if(before.begin(), before.end(),
                                    [&](const Row& row) { return row.parameter == &p; });
      rows_.push_back({entry, &p, old == before.end() ? text_of(p.fallback) : old->value});
    }
  }
  endResetModel();
  emit spec_changed();
}

void PolicyForm::set_policy(const QString& name) {
  set_entries(wrapper_, &find_policy(name.toStdString()));
}

void PolicyForm::set_wrapper(const QString& name) {
  set_entries(name.isEmpty() ? nullptr : &find_policy(name.toStdString()), policy_);
}

QString PolicyForm::policy() const { return policy_ == nullptr ? "" : text_of(policy_->name); }
QString PolicyForm::wrapper() const { return wrapper_ == nullptr ? "" : text_of(wrapper_->name); }

bool PolicyForm::set_spec(const QString& text) {
  try {
    const RecipeSpec spec = parse_spec(text.trimmed().toStdString());
    if (spec.size() != 1) return false;
    const bool wrapped = !spec[0].inner.empty();
    const Term& inner = wrapped ? spec[0].inner[0] : spec[0];
    if (wrapped && (spec[0].inner.size() != 1 || !inner.inner.empty())) return false;
    const PolicyEntry* policy = &find_policy(inner.name);
    const PolicyEntry* wrapper = wrapped ? &find_policy(spec[0].name) : nullptr;
    if (policy->wrapper || (wrapped && !wrapper->wrapper)) return false;
    // Name of the entry and key, with the value.
    std::vector<std::pair<std::pair<std::string, std::string>, std::string>> values;
    for (const Term* term : {&spec[0], &inner}) {
      for (const Argument& argument : term->arguments) {
        if (argument.values.size() != 1) return false;
        values.push_back({{term->name, argument.key}, argument.values[0]});
      }
    }
    const auto known = [](const PolicyEntry* entry, const std::string& name,
                          const std::string& key) {
      return entry != nullptr && entry->name == name &&
             std::any_of(entry->parameters.begin(), entry->parameters.end(),
                         [&](const Parameter& p) { return p.name == key; });
    };
    for (const auto& [key, value] : values) {
      if (!known(policy, key.first, key.second) && !known(wrapper, key.first, key.second)) {
        return false;
      }
    }
    set_entries(wrapper, policy);
    for (Row& row : rows_) {
      row.value = text_of(row.parameter->fallback);
      for (const auto& [key, value] : values) {
        if (key == std::pair(row.entry->name, row.parameter->name)) row.value = text_of(value);
      }
    }
  } catch (const Error&) {
    return false;
  }
  if (!rows_.empty()) emit dataChanged(index(0, 0), index(rowCount() - 1, kColumns - 1));
  emit spec_changed();
  return true;
}

QString PolicyForm::spec() const {
  if (policy_ == nullptr) return {};
  const auto term = [&](const PolicyEntry* entry) {
    Term out;
    out.name = entry->name;
    for (const Row& row : rows_) {
      if (row.entry == entry && row.changed()) {
        out.arguments.push_back({row.parameter->name, {row.value.toStdString()}});
      }
    }
    return out;
  };
  RecipeSpec spec{term(policy_)};
  if (wrapper_ != nullptr) {
    Term outer = term(wrapper_);
    outer.inner = std::move(spec);
    spec = {std::move(outer)};
  }
  return text_of(to_text(spec));
}

const Parameter& PolicyForm::parameter(int row) const {
  return *rows_[static_cast<std::size_t>(row)].parameter;
}

int PolicyForm::rowCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(rows_.size());
}

int PolicyForm::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : kColumns;
}

QVariant PolicyForm::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const Row& row = rows_[static_cast<std::size_t>(index.row())];
  const Parameter& p = *row.parameter;
  if (role == Qt::ToolTipRole) {
    QString text = text_of(p.help);
    if (!p.unit.empty()) text += text_of(" [" + p.unit + "]");
    return text +
           "\ndefault: " + (p.fallback.empty() ? "none, must be given" : text_of(p.fallback));
  }
  if (role == kChangedRole) return row.changed();
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  switch (index.column()) {
    case kName:
      return wrapper_ != nullptr && row.entry == wrapper_ ? text_of(row.entry->name + ": " + p.name)
                                                          : text_of(p.name);
    case kValue:
      return row.value;
    case kUnit:
      return text_of(p.unit);
    case kDefault:
      return text_of(p.fallback);
    default:
      return text_of(p.help);
  }
}

bool PolicyForm::setData(const QModelIndex& index, const QVariant& value, int role) {
  if (!index.isValid() || index.column() != kValue || role != Qt::EditRole) return false;
  Row& row = rows_[static_cast<std::size_t>(index.row())];
  QString text = value.toString().trimmed();
  if (text.isEmpty()) text = text_of(row.parameter->fallback);
  if (text == row.value) return true;
  row.value = text;
  emit dataChanged(this->index(index.row(), 0), this->index(index.row(), kColumns - 1));
  emit spec_changed();
  return true;
}

QVariant PolicyForm::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal || role != Qt::DisplayRole) return {};
  static const QStringList names{"parameter", "value", "unit", "default", "meaning"};
  return names.value(section);
}

Qt::ItemFlags PolicyForm::flags(const QModelIndex& index) const {
  const Qt::ItemFlags flags = QAbstractTableModel::flags(index);
  return index.isValid() && index.column() == kValue ? flags | Qt::ItemIsEditable : flags;
}

QString spec_error(const QString& text, const std::optional<Geometry>& geometry) {
  try {
    const std::vector<RecipeSpec> specs = expand_policies({text.trimmed().toStdString()}, {});
    for (const RecipeSpec& spec : specs) {
      if (geometry) {
        (void)make_policy(spec, *geometry);
      } else {
        check_terms(spec);
      }
    }
  } catch (const std::exception& error) {
    return QString::fromUtf8(error.what());
  }
  return {};
}

}  // namespace kvspan::gui
