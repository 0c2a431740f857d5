// SPDX-License-Identifier: Apache-2.0
// Footprint against fidelity: the runs of all open results as points, which of them nobody beats,
// and how little memory each policy needs for a wanted fidelity.
#pragma once

#include <QAbstractTableModel>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

// Retained attention of decode rows (mean, or what 95 % of them exceed; of all rows where none was
// decoded), or 1 - mean relative output error of the same rows.
enum class FidelityFigure : std::uint8_t { mass_mean, mass_p5, output };
[[nodiscard]] std::optional<double> fidelity_of(const Run& run, FidelityFigure figure);
// Its upper end, where the result is of a score trace and fidelity_of() the lower one.
[[nodiscard]] std::optional<double> fidelity_upper_of(const Run& run, FidelityFigure figure);

// Runs of one trace, prompt, chunk size and method (method_of() their labels) are one family.
struct Tradeoff {
  struct Point {
    std::size_t run = 0;     // in Document::runs()
    double footprint = 0;    // KV footprint, share of a full cache
    double fidelity = 0;     // share; of a score trace the least that it may be
    double most = 0;         // the most; the same elsewhere
    std::size_t family = 0;  // in `families`
    bool bound = false;      // reads the future
    bool front = false;      // on the Pareto front
    bool critical = false;   // the critical footprint of its family
    // Of run --regret, for retained attention: what the best eviction has more at the run's own
    // occupancy; the smallest footprint at which it retains as much.
    std::optional<double> regret, optimum;
  };
  struct Family {
    std::string name;                     // its method, "h2o, chunk 512" where there are others
    std::string method;                   // "chunked(snapkv)"
    std::vector<std::size_t> points;      // by footprint
    std::optional<std::size_t> critical;  // point; nullopt: none surely reaches the threshold
    std::optional<double> least;          // footprint from which on one may reach it
    std::optional<std::pair<double, double>> regret;  // the least and the most of its points
    bool bound = false;
    // Slot of the palette: of its run where every family is one run, else of its policy, which has
    // the same colour on every trace and at every chunk size.
    int colour = 0;
    int mark = 0;           // of its points: one for each trace, prompt and chunk size
    std::size_t group = 0;  // in `groups`
    RowIndex chunk = 0;
  };
  // Runs of one trace and prompt: only these compare.
  struct Group {
    std::string name;                // "smollm2-passkey, prompt 512"
    std::vector<std::size_t> front;  // points by footprint
  };
  // Of each result that has one (run --regret), for retained attention: footprints, ascending, and
  // the most that any eviction policy can retain there.
  std::vector<std::vector<std::pair<double, double>>> frontiers;
  std::vector<Point> points;
  // By group, then by critical footprint, then those that do not reach it.
  std::vector<Family> families;
  std::vector<Group> groups;
  std::size_t unmeasured = 0;  // visible runs without this figure
  std::size_t marks = 0;       // traces, prompts and chunk sizes
  [[nodiscard]] bool has_regrets() const;
};

// Of the visible runs. The Pareto front: points of methods, not bounds, than which no other one of
// the group has surely less footprint and as much fidelity, or as little and more. The critical
// footprint of a family: the smallest of its points with fidelity >= threshold (arXiv 2506.17121,
// section 2.1).
[[nodiscard]] Tradeoff make_tradeoff(const std::vector<ShownRun>& runs, FidelityFigure figure,
                                     double threshold);

// Critical footprints, one family a row; with regrets two columns more. Qt::EditRole: shares,
// invalid where there is none; kRunRole: the run in Document::runs(), or -1.
class CriticalTable final : public QAbstractTableModel {
  Q_OBJECT
 public:
  static constexpr int kRunRole = Qt::UserRole;
  static constexpr int kColourRole = Qt::UserRole + 1;  // slot of the family
  static constexpr int kMarkRole = Qt::UserRole + 2;
  using QAbstractTableModel::QAbstractTableModel;
  void set(const Tradeoff& tradeoff, const std::vector<ShownRun>& runs);
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;

 private:
  struct Row {
    QString family, spec;
    std::optional<double> least, footprint, fidelity, most, optimum;
    std::optional<std::pair<double, double>> regret;
    int run = -1, colour = 0, mark = 0;
  };
  enum class Column : std::uint8_t { policy, footprint, reached, regret, optimum, with };
  [[nodiscard]] Column column(int section) const;
  std::vector<Row> rows_;
  bool regrets_ = false;
};

}  // namespace kvspan::gui
