// SPDX-License-Identifier: Apache-2.0
// What is open, what is shown of it, and what is selected: the one state that all views share. A
// view reads it, changes it through setters, and repaints on its signals; views never know each
// other.
#pragma once

#include <QObject>
#include <QString>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "gui/model/result.h"
#include "sim/trace/trace.h"

namespace kvspan::gui {

class SweepState;

// Rows [begin, end).
struct Rows {
  RowIndex begin = 0, end = 0;
  [[nodiscard]] RowIndex size() const { return end - begin; }
  [[nodiscard]] bool empty() const { return end <= begin; }
  bool operator==(const Rows&) const = default;
};

// What a chart of memory over time counts. mass: retained attention, in percent as well.
enum class Quantity : std::uint8_t { entries, bytes, percent, mass };
// What the memory of the current run is stacked by; none: lines of all runs.
enum class Stack : std::uint8_t { none, layer, head_class, state };
// What a map of heads shows.
enum class HeadFigure : std::uint8_t { footprint, peak_kv, retained_mass };

struct Display {
  Quantity quantity = Quantity::bytes;
  bool log = false;
  Stack stack = Stack::none;
  HeadFigure head_figure = HeadFigure::footprint;
  bool attention = false;  // maps of lifetimes show attention, too
  bool beside = false;     // the baseline's map of lifetimes is beside the current run's
  bool operator==(const Display&) const = default;
};

// One layer, stored head or token; -1: all of them.
struct Focus {
  int layer = -1;
  int head = -1;
  std::int64_t token = -1;
  bool operator==(const Focus&) const = default;
};

// A run on the list.
struct ShownRun {
  ResultPtr result;
  std::size_t index = 0;  // in result->runs
  int colour = 0;         // slot of the palette; stays with the run while it is open
  bool visible = true;
  [[nodiscard]] const Run& run() const { return result->runs[index]; }
};

class Document : public QObject {
  Q_OBJECT
 public:
  explicit Document(QObject* parent = nullptr);
  ~Document() override;

  [[nodiscard]] const std::vector<ShownRun>& runs() const { return runs_; }
  [[nodiscard]] std::vector<ResultPtr> results() const;  // in the order they were opened
  // Adds the runs of a result. If one of the same path is open, it is replaced: runs of the same
  // policy keep colour and visibility, the others take those of the runs that are gone, in order.
  // What was simulated and what was measured of the same decisions have one colour.
  void add(ResultPtr result);
  void close(const ResultPtr& result);
  void set_visible(std::size_t run, bool visible);
  void set_colour(std::size_t run, int slot);

  // The run that views of one run show; -1: none is open.
  [[nodiscard]] int current() const { return current_; }
  [[nodiscard]] const ShownRun* current_run() const;
  void set_current(int run);
  // The run that others are compared with; -1: none is open.
  [[nodiscard]] int baseline() const { return baseline_; }
  [[nodiscard]] const ShownRun* baseline_run() const;
  void set_baseline(int run);

  // Rows of the longest trace of all open runs; 0: none is open.
  [[nodiscard]] RowIndex rows() const;
  // Rows that charts over time show, at least 2 unless there are fewer.
  [[nodiscard]] Rows zoom() const { return zoom_; }
  void set_zoom(Rows zoom);
  void zoom_out() { set_zoom({0, rows()}); }
  // Rows that are selected; one row is an instant. Empty only while nothing is open.
  [[nodiscard]] Rows selection() const { return selection_; }
  // The instant that tables of what is held show: the last selected row.
  [[nodiscard]] RowIndex instant() const { return selection_.end - 1; }
  void set_selection(Rows selection);

  [[nodiscard]] Focus focus() const { return focus_; }
  void set_focus(Focus focus);
  [[nodiscard]] const Display& display() const { return display_; }
  void set_display(const Display& display);

  // The sweep that is open, and how it is looked at.
  [[nodiscard]] SweepState& sweep() const { return *sweep_; }

  // The trace that a result was made from, opened on first use; null, with a reason, if it is not
  // where the result says (also looked for in the folders above the result), or is another one now.
  [[nodiscard]] std::shared_ptr<const Trace> trace_of(const Result& result, QString* why = nullptr);

 signals:
  void runs_changed();     // opened, closed, shown, hidden, coloured
  void current_changed();  // current or baseline
  void zoom_changed();
  void selection_changed();
  void focus_changed();
  void display_changed();

 private:
  // What was looked at before runs came or went.
  struct Looked {
    bool whole = false;  // all rows were shown
    std::optional<ShownRun> current, baseline;
  };
  [[nodiscard]] Looked looked() const;
  [[nodiscard]] int find_again(const std::optional<ShownRun>& run) const;
  void after_change(const Looked& before);
  void forget_trace(const Result& result);
  [[nodiscard]] Rows inside(Rows wanted, RowIndex least) const;
  [[nodiscard]] Focus inside(Focus focus) const;
  struct Traces;
  SweepState* sweep_;  // a child
  std::vector<ShownRun> runs_;
  int current_ = -1, baseline_ = -1;
  Rows zoom_, selection_;
  Focus focus_;
  Display display_;
  std::unique_ptr<Traces> traces_;
};

// Where a trace is that a file names: as written, or from the file's folder upwards; empty: gone.
[[nodiscard]] std::filesystem::path find_trace(const std::filesystem::path& named,
                                               const std::filesystem::path& file);

// The row at which a run's memory peaks: as its JSON says, else that of its largest bytes.
[[nodiscard]] RowIndex peak_row(const ShownRun& shown);

}  // namespace kvspan::gui
