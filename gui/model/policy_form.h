// SPDX-License-Identifier: Apache-2.0
// Policies of the registry as models: the list to choose from, and the form of the chosen one. Both
// are made from the registry alone; no policy has a form of its own.
#pragma once

#include <QAbstractItemModel>
#include <QAbstractTableModel>
#include <QString>
#include <optional>
#include <vector>

#include "sim/policy/registry.h"

namespace kvspan::gui {

// Every policy under its class: a tree of two levels. Column 0: name; Qt::ToolTipRole: summary.
class PolicyList final : public QAbstractItemModel {
  Q_OBJECT
 public:
  static constexpr int kNameRole = Qt::UserRole;        // empty for a class
  static constexpr int kSearchRole = Qt::UserRole + 1;  // name, class and summary

  // Without wrappers, which take another policy.
  explicit PolicyList(QObject* parent = nullptr);
  [[nodiscard]] QModelIndex index(int row, int column, const QModelIndex& parent) const override;
  [[nodiscard]] QModelIndex parent(const QModelIndex& child) const override;
  [[nodiscard]] int rowCount(const QModelIndex& parent) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QModelIndex find(const QString& policy) const;

 private:
  struct Class {
    QString name;
    std::vector<const PolicyEntry*> policies;
  };
  std::vector<Class> classes_;
};

// The parameters of one policy, and of the wrapper around it, one a row. Values are edited as text
// and may be anything: spec() is what error() judges.
class PolicyForm final : public QAbstractTableModel {
  Q_OBJECT
 public:
  enum Column : int { kName, kValue, kUnit, kDefault, kHelp, kColumns };
  static constexpr int kChangedRole = Qt::UserRole;  // true: not the default

  explicit PolicyForm(QObject* parent = nullptr);

  // Names of the registry's wrappers.
  [[nodiscard]] static std::vector<QString> wrappers();

  // REQUIRES: of the registry; the wrapper may be empty. Values of what stays are kept.
  void set_policy(const QString& name);
  void set_wrapper(const QString& name);
  [[nodiscard]] QString policy() const;  // empty: none yet
  [[nodiscard]] QString wrapper() const;
  // Reads a spec into the form. False, and nothing changes, if it is not one policy with at most
  // one wrapper around it: recipes and sets are written as text.
  bool set_spec(const QString& text);
  // The spec, with the values that are not the default's.
  [[nodiscard]] QString spec() const;

  // The parameter of a row. REQUIRES: 0 <= row < rowCount().
  [[nodiscard]] const Parameter& parameter(int row) const;

  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  bool setData(const QModelIndex& index, const QVariant& value, int role = Qt::EditRole) override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;
  [[nodiscard]] Qt::ItemFlags flags(const QModelIndex& index) const override;

 signals:
  void spec_changed();

 private:
  struct Row {
    const PolicyEntry* entry;
    const Parameter* parameter;
    QString value;
    [[nodiscard]] bool changed() const;
  };
  void set_entries(const PolicyEntry* wrapper, const PolicyEntry* policy);
  const PolicyEntry* policy_ = nullptr;
  const PolicyEntry* wrapper_ = nullptr;
  std::vector<Row> rows_;  // the wrapper's first
};

// What is wrong with a spec (or a list of them in sets), in one line; empty: nothing. Without a
// geometry only names and ranges are looked at.
[[nodiscard]] QString spec_error(const QString& text, const std::optional<Geometry>& geometry);

}  // namespace kvspan::gui
