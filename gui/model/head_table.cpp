// SPDX-License-Identifier: Apache-2.0
#include "gui/model/head_table.h"

#include <cmath>

#include <nlohmann/json.hpp>

namespace kvspan::gui {
namespace {

// per_head.KEY of a run: [layers][heads], NaN for null. Empty: the run has no such figure.
std::vector<std::vector<double>> head_values(const Run& run, int layers, const char* key) {
  std::vector<std::vector<double>> out;
  if (run.figures == nullptr) return out;
  const nlohmann::json none;
  const auto per_head = run.figures->value("per_head", none);
  const auto values = per_head.is_object() ? per_head.value(key, none) : none;
  if (!values.is_array() || static_cast<int>(values.size()) != layers) return out;
  for (const nlohmann::json& layer : values) {
    if (!layer.is_array() || layer.empty() || (!out.empty() && layer.size() != out[0].size())) {
      return {};
    }
    auto& row = out.emplace_back();
    for (const nlohmann::json& value : layer) {
      row.push_back(value.is_number() ? value.get<double>() : NAN);
    }
  }
  return out;
}

}  // namespace

const char* head_key(HeadFigure figure) {
  switch (figure) {
    case HeadFigure::footprint:
      return "footprint";
    case HeadFigure::peak_kv:
      return "peak_kv";
    case HeadFigure::retained_mass:
      break;
  }
  return "retained_mass";
}

void HeadTable::set(const ShownRun* shown, const ShownRun* baseline, HeadFigure figure) {
  beginResetModel();
  layer_ids_.clear();
  values_.clear();
  heads_ = 0;
  group_ = 1;
  difference_ = false;
  if (shown != nullptr) {
    const int layers = shown->result->trace.layers();
    auto own = head_values(shown->run(), layers, head_key(figure));
    if (baseline != nullptr &&
        baseline->result->trace.layer_ids == shown->result->trace.layer_ids) {
      const auto other = head_values(baseline->run(), layers, head_key(figure));
      difference_ = !own.empty() && !other.empty() && own[0].size() == other[0].size();
      for (std::size_t l = 0; difference_ && l < own.size(); ++l) {
        for (std::size_t h = 0; h < own[l].size(); ++h) own[l][h] -= other[l][h];
      }
    }
    if (!own.empty()) {
      layer_ids_ = shown->result->trace.layer_ids;
      heads_ = static_cast<int>(own[0].size());
      const int stored = shown->run().heads;
      if (stored > 0 && heads_ % stored == 0) group_ = heads_ / stored;
      for (const auto& layer : own) values_.insert(values_.end(), layer.begin(), layer.end());
    }
  }
  endResetModel();
}

double HeadTable::at(int layer, int head) const {
  return values_[static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads_) +
                 static_cast<std::size_t>(head)];
}

double HeadTable::mean(int layer, int head) const {
  double sum = 0;
  int count = 0;
  for (int l = layer < 0 ? 0 : layer; l < (layer < 0 ? layers() : layer + 1); ++l) {
    for (int h = head < 0 ? 0 : head; h < (head < 0 ? heads_ : head + 1); ++h) {
      if (std::isnan(at(l, h))) continue;
      sum += at(l, h);
      ++count;
    }
  }
  return count == 0 ? NAN : sum / count;
}

int HeadTable::rowCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : layers(); }
int HeadTable::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : heads_;
}

QVariant HeadTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid() || (role != Qt::DisplayRole && role != Qt::EditRole)) return {};
  const double value = at(index.row(), index.column());
  if (std::isnan(value)) return {};
  if (role == Qt::EditRole) return value;
  return QString(difference_ && value > 0 ? "+" : "") + QString::number(100 * value, 'f', 1);
}

QVariant HeadTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (role != Qt::DisplayRole || section < 0) return {};
  if (orientation == Qt::Horizontal) return QString("head %1").arg(section);
  return section < layers() ? QString("layer %1").arg(model_layer(section)) : QVariant();
}

}  // namespace kvspan::gui
