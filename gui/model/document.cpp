// SPDX-License-Identifier: Apache-2.0
#include "gui/model/document.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "gui/model/sweep_state.h"
#include "sim/base/error.h"

namespace kvspan::gui {

// Opened traces, and the reasons of those that are not, by the result's path and the trace's.
struct Document::Traces {
  struct Opened {
    std::shared_ptr<const Trace> trace;
    std::string why;
  };
  std::map<std::pair<std::string, std::string>, Opened> opened;
};

namespace {

// Larger traces are told apart by their shape: hashing would hold up the window.
constexpr std::uintmax_t kHashedBytes = 16U << 20U;

std::shared_ptr<const Trace> open_trace(const Result& result) {
  const std::filesystem::path path = find_trace(result.trace.path, result.path);
  if (path.empty()) {
    throw TraceError(fmt::format("the trace {} is not there any more", result.trace.path));
  }
  auto trace = std::make_shared<const Trace>(Trace::open(path));
  std::uintmax_t bytes = 0;  // of all shards
  std::error_code ignored;
  for (const auto& file : trace->tensors().files())
    bytes += std::filesystem::file_size(file, ignored);
  const bool hashed = bytes <= kHashedBytes;
  if (trace->meta().tokens != result.trace.tokens ||
      trace->meta().layer_ids != result.trace.layer_ids ||
      (hashed && !result.trace.sha256.empty() && trace->sha256() != result.trace.sha256)) {
    throw TraceError(
        fmt::format("{} is not the trace any more that the result was made from", path.string()));
  }
  return trace;
}

int free_colour(const std::vector<ShownRun>& runs) {
  std::set<int> used;
  for (const ShownRun& run : runs) used.insert(run.colour);
  int slot = 0;
  while (used.contains(slot)) ++slot;
  return slot;
}

// Of the same decisions one is simulated and the other measured: their lines have one colour.
const ShownRun* counterpart_of(const ShownRun& shown, const std::vector<ShownRun>& runs) {
  const auto decisions = [](const ShownRun& of) {
    return of.run().replayed.empty() ? of.run().policy : of.run().replayed;
  };
  const auto found = std::find_if(runs.begin(), runs.end(), [&](const ShownRun& other) {
    const Result &a = *shown.result, &b = *other.result;
    return shown.run().replayed.empty() != other.run().replayed.empty() &&
           decisions(shown) == decisions(other) && a.trace.sha256 == b.trace.sha256 &&
           a.trace.prompt == b.trace.prompt && a.chunk == b.chunk;
  });
  return found == runs.end() ? nullptr : &*found;
}

}  // namespace

std::filesystem::path find_trace(const std::filesystem::path& named,
                                 const std::filesystem::path& file) {
  std::error_code ignored;
  if (std::filesystem::exists(named, ignored)) return named;
  std::filesystem::path folder = std::filesystem::absolute(file, ignored).parent_path();
  for (;;) {
    for (const auto& candidate : {folder / named.relative_path(), folder / named.filename()}) {
      if (std::filesystem::exists(candidate, ignored)) return candidate;
    }
    if (folder == folder.parent_path()) return {};
    folder = folder.parent_path();
  }
}

Document::Document(QObject* parent)
    : QObject(parent), sweep_(new SweepState(this)), traces_(std::make_unique<Traces>()) {}
Document::~Document() = default;

std::vector<ResultPtr> Document::results() const {
  std::vector<ResultPtr> list;
  for (const ShownRun& shown : runs_) {
    if (list.empty() || list.back() != shown.result) list.push_back(shown.result);
  }
  return list;
}

// The trace of a result that is opened again may be another one by now.
void Document::forget_trace(const Result& result) {
  std::erase_if(traces_->opened,
                [&](const auto& item) { return item.first.first == result.path.string(); });
}

void Document::add(ResultPtr result) {
  const Looked before = looked();
  forget_trace(*result);
  const auto same_path = [&](const ShownRun& shown) { return shown.result->path == result->path; };
  std::vector<ShownRun> old;
  std::copy_if(runs_.begin(), runs_.end(), std::back_inserter(old), same_path);
  const auto at = std::find_if(runs_.begin(), runs_.end(), same_path) - runs_.begin();
  std::erase_if(runs_, same_path);
  std::vector<ShownRun> added;
  std::vector<std::size_t> strange;  // of `added`, of policies that were not there
  for (std::size_t r = 0; r < result->runs.size(); ++r) {
    // Of an evaluation only the first sample is drawn at first: there may be very many runs.
    ShownRun shown{result, r, -1, result->sample == 0};
    const auto known = std::find_if(old.begin(), old.end(), [&](const ShownRun& o) {
      return o.run().policy == shown.run().policy;
    });
    if (known != old.end()) {
      shown.colour = known->colour;
      shown.visible = known->visible;
      old.erase(known);
    } else {
      strange.push_back(r);
    }
    added.push_back(shown);
  }
  for (std::size_t i = 0; i < strange.size(); ++i) {
    ShownRun& shown = added[strange[i]];
    if (i < old.size()) {
      shown.colour = old[i].colour;
      shown.visible = old[i].visible;
    } else {
      std::vector<ShownRun> taken = runs_;
      for (const ShownRun& other : added) {
        if (&other != &shown) taken.push_back(other);
      }
      const ShownRun* counterpart = counterpart_of(shown, taken);
      shown.colour = counterpart == nullptr ? free_colour(taken) : counterpart->colour;
    }
  }
  runs_.insert(runs_.begin() + at, added.begin(), added.end());
  after_change(before);
}

void Document::close(const ResultPtr& result) {
  const Looked before = looked();
  std::erase_if(runs_, [&](const ShownRun& shown) { return shown.result == result; });
  forget_trace(*result);
  after_change(before);
}

Document::Looked Document::looked() const {
  const auto copy = [](const ShownRun* run) {
    return run == nullptr ? std::nullopt : std::optional(*run);
  };
  return {zoom_ == Rows{0, rows()}, copy(current_run()), copy(baseline_run())};
}

// The run of the same file and policy, or at the same place in that file; -1: it is gone.
int Document::find_again(const std::optional<ShownRun>& run) const {
  int place = -1;
  for (std::size_t i = 0; run && i < runs_.size(); ++i) {
    if (runs_[i].result->path != run->result->path) continue;
    if (runs_[i].run().policy == run->run().policy) return static_cast<int>(i);
    if (runs_[i].index == run->index) place = static_cast<int>(i);
  }
  return place;
}

// Brings indices and ranges inside what is open now, and only then tells views. Without a run to go
// on with, the baseline is `full`, if it is there, and the current run another one.
void Document::after_change(const Looked& before) {
  const auto is_full = [](const ShownRun& shown) {
    return shown.run().policy == "full" || shown.run().policy.starts_with("full(");
  };
  const int count = static_cast<int>(runs_.size());
  current_ = find_again(before.current);
  baseline_ = find_again(before.baseline);
  if (baseline_ < 0 && count > 0) {
    const auto full = std::find_if(runs_.begin(), runs_.end(), is_full);
    baseline_ = full == runs_.end() ? 0 : static_cast<int>(full - runs_.begin());
  }
  if (current_ < 0 && count > 0) current_ = baseline_ == 0 && count > 1 ? 1 : 0;
  const Rows zoom = before.whole ? Rows{0, rows()} : inside(zoom_, 2);
  const RowIndex peak = count == 0 ? 0 : peak_row(*current_run());
  const Rows selection = inside(selection_.empty() ? Rows{peak, peak + 1} : selection_, 1);
  const bool zoomed = std::exchange(zoom_, zoom) != zoom;
  const bool selected = std::exchange(selection_, selection) != selection;
  const bool moved = std::exchange(focus_, inside(focus_)) != focus_;
  emit runs_changed();
  emit current_changed();
  if (zoomed) emit zoom_changed();
  if (selected) emit selection_changed();
  if (moved) emit focus_changed();
}

// The nearest rows of what is open, at least `least` unless there are fewer.
Rows Document::inside(Rows wanted, RowIndex least) const {
  const RowIndex all = rows();
  const RowIndex begin = std::clamp<RowIndex>(wanted.begin, 0, std::max<RowIndex>(0, all - least));
  return {begin, std::clamp(wanted.end, std::min(begin + least, all), all)};
}

void Document::set_visible(std::size_t run, bool visible) {
  if (run >= runs_.size() || runs_[run].visible == visible) return;
  runs_[run].visible = visible;
  emit runs_changed();
}

void Document::set_colour(std::size_t run, int slot) {
  if (run >= runs_.size() || runs_[run].colour == slot) return;
  runs_[run].colour = slot;
  emit runs_changed();
}

const ShownRun* Document::current_run() const {
  return current_ < 0 ? nullptr : &runs_[static_cast<std::size_t>(current_)];
}

const ShownRun* Document::baseline_run() const {
  return baseline_ < 0 ? nullptr : &runs_[static_cast<std::size_t>(baseline_)];
}

void Document::set_current(int run) {
  if (run < 0 || run >= static_cast<int>(runs_.size()) || run == current_) return;
  current_ = run;
  const bool moved = std::exchange(focus_, inside(focus_)) != focus_;
  emit current_changed();
  if (moved) emit focus_changed();
}

void Document::set_baseline(int run) {
  if (run < 0 || run >= static_cast<int>(runs_.size()) || run == baseline_) return;
  baseline_ = run;
  emit current_changed();
}

RowIndex Document::rows() const {
  RowIndex most = 0;
  for (const ShownRun& shown : runs_) most = std::max(most, shown.result->trace.tokens);
  return most;
}

// A zoom that is moved past an end keeps its size.
void Document::set_zoom(Rows zoom) {
  const RowIndex all = rows();
  const RowIndex size = std::clamp(zoom.size(), std::min<RowIndex>(2, all), all);
  const RowIndex begin = std::clamp<RowIndex>(zoom.begin, 0, all - size);
  if (std::exchange(zoom_, {begin, begin + size}) != zoom_) emit zoom_changed();
}

void Document::set_selection(Rows selection) {
  if (std::exchange(selection_, inside(selection, 1)) != selection_) emit selection_changed();
}

void Document::set_focus(Focus focus) {
  if (std::exchange(focus_, inside(focus)) != focus_) emit focus_changed();
}

// The nearest of what the current run has.
Focus Document::inside(Focus focus) const {
  const ShownRun* shown = current_run();
  const int layers = shown == nullptr ? 0 : shown->result->trace.layers();
  const int heads = shown == nullptr ? 0 : shown->run().heads;
  const RowIndex tokens = shown == nullptr ? 0 : shown->result->trace.tokens;
  return {std::clamp(focus.layer, -1, layers - 1),
          std::clamp(focus.head, -1, std::max(heads, 1) - 1),
          std::clamp<std::int64_t>(focus.token, -1, tokens - 1)};
}

void Document::set_display(const Display& display) {
  if (display == display_) return;
  display_ = display;
  emit display_changed();
}

std::shared_ptr<const Trace> Document::trace_of(const Result& result, QString* why) {
  const auto key = std::pair(result.path.string(), result.trace.path);
  auto found = traces_->opened.find(key);
  if (found == traces_->opened.end()) {
    Traces::Opened opened;
    try {
      opened.trace = open_trace(result);
    } catch (const Error& error) {
      opened.why = error.what();
    }
    found = traces_->opened.emplace(key, std::move(opened)).first;
  }
  if (why != nullptr) *why = QString::fromStdString(found->second.why);
  return found->second.trace;
}

RowIndex peak_row(const ShownRun& shown) {
  const RowIndex last = shown.result->trace.tokens - 1;
  if (const auto row = figure(shown.run(), "peak_bytes.row")) {
    return static_cast<RowIndex>(std::clamp(*row, 0.0, static_cast<double>(last)));
  }
  const SeriesPtr& series = shown.run().bytes ? shown.run().bytes : shown.run().entries;
  return series == nullptr ? last : series->row_of_high(0, series->rows());
}

}  // namespace kvspan::gui
