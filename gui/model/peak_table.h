// SPDX-License-Identifier: Apache-2.0
// What memory is made of at a run's peak: by layer, by what it holds, in any storage layout.
#pragma once

#include <QAbstractTableModel>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

enum class PeakPhase : std::uint8_t { peak, prefill, decode };

struct PeakParts {
  // Device bytes. layout: what a storage layout adds to its entries (padding, blocks that are not
  // full, copies a query head); overhead: what the policy keeps beside its entries.
  struct Part {
    int model_layer = -1;
    std::int64_t prompt = 0, generated = 0, layout = 0, overhead = 0;
    [[nodiscard]] std::int64_t total() const { return prompt + generated + layout + overhead; }
  };
  RowIndex row = 0;  // the last row of the pass that peaks
  std::vector<Part> layers;
  std::int64_t state = 0, once = 0;  // the policy's, for the whole model
  // By how much the peak differs from the sum: copies where prefill is layerwise, else what the
  // lifetimes file does not list.
  std::int64_t rest = 0;
  bool layerwise = false;
  std::int64_t total = 0;
};

// Bytes of the peak as the result JSON says; nullopt: it does not, or the phase has no rows.
[[nodiscard]] std::optional<std::int64_t> peak_total(const Result& result, std::size_t run,
                                                     const std::string& layout, PeakPhase phase);
// Layouts that the result knows, the chosen one first where it is not a standard one.
[[nodiscard]] std::vector<std::string> peak_layouts(const Result& result, std::size_t run);

// What an open replay of a run's decisions measured of its peak in this layout: bytes that were
// backed, of the prefill or decode those that the pool used. nullopt: none did, or what was
// predicted there is another figure than this run's.
[[nodiscard]] std::optional<std::int64_t> measured_peak(const std::vector<ShownRun>& open,
                                                        const ShownRun& run,
                                                        const std::string& layout, PeakPhase phase);

// Of a run with lifetimes; total is the JSON's where there is one.
// Cost: two walks over the layers; memory of one layer. Errors: TraceError from the lifetimes file;
// Interrupted.
// REQUIRES: result.lifetimes, and the phase has rows.
[[nodiscard]] PeakParts peak_parts(const Result& result, std::size_t run, const std::string& layout,
                                   PeakPhase phase, const std::function<bool()>& cancelled);

// One part a row, the total last. Qt::EditRole: bytes; share of the total in the last column.
class PeakTable final : public QAbstractTableModel {
  Q_OBJECT
 public:
  enum Column : int { kPart, kPrompt, kGenerated, kLayout, kOverhead, kTotal, kShare, kColumns };
  using QAbstractTableModel::QAbstractTableModel;
  void set(const PeakParts& parts);
  void set_total(std::optional<std::int64_t> total);  // all that is known without lifetimes
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;

 private:
  struct Row {
    QString part;
    std::vector<std::optional<std::int64_t>> bytes;  // of kPrompt to kTotal
  };
  std::vector<Row> rows_;
  std::int64_t total_ = 0;
};

}  // namespace kvspan::gui
