// SPDX-License-Identifier: Apache-2.0
#include "gui/document.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "sim/error.h"

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

// As written, and from the result's folder upwards.
std::filesystem::path find_trace(const Result& result) {
  const std::filesystem::path named(result.trace.path);
  std::error_code ignored;
  if (std::filesystem::exists(named, ignored)) return named;
  std::filesystem::path folder = std::filesystem::absolute(result.path, ignored).parent_path();
  for (;;) {
    for (const auto& candidate : {folder / named.relative_path(), folder / named.filename()}) {
      if (std::filesystem::exists(candidate, ignored)) return candidate;
    }
    if (folder == folder.parent_path()) return {};
    folder = folder.parent_path();
  }
}

std::shared_ptr<const Trace> open_trace(const Result& result) {
  const std::filesystem::path path = find_trace(result);
  if (path.empty()) {
    throw TraceError(fmt::format("the trace {} is not there any more", result.trace.path));
  }
  auto trace = std::make_shared<const Trace>(Trace::open(path));
  std::error_code ignored;
  const bool hashed = std::filesystem::file_size(path, ignored) <= kHashedBytes;
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

}  // namespace

Document::Document(QObject* parent) : QObject(parent), traces_(std::make_unique<Traces>()) {}
Document::~Document() = default;

std::vector<ResultPtr> Document::results() const {
  std::vector<ResultPtr> list;
  for (const ShownRun& shown : runs_) {
    if (list.empty() || list.back() != shown.result) list.push_back(shown.result);
  }
  return list;
}

void Document::add(ResultPtr result) {
  const bool whole = zoom_ == Rows{0, rows()};
  const auto same_path = [&](const ShownRun& shown) { return shown.result->path == result->path; };
  std::vector<ShownRun> old;
  std::copy_if(runs_.begin(), runs_.end(), std::back_inserter(old), same_path);
  const auto at = std::find_if(runs_.begin(), runs_.end(), same_path) - runs_.begin();
  std::erase_if(runs_, same_path);
  std::vector<ShownRun> added;
  std::vector<std::size_t> strange;  // of `added`, of policies that were not there
  for (std::size_t r = 0; r < result->runs.size(); ++r) {
    ShownRun shown{result, r, -1, true};
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
      shown.colour = free_colour(taken);
    }
  }
  runs_.insert(runs_.begin() + at, added.begin(), added.end());
  after_change(whole);
}

void Document::close(const ResultPtr& result) {
  const RowIndex rows_before = rows();
  std::erase_if(runs_, [&](const ShownRun& shown) { return shown.result == result; });
  std::erase_if(traces_->opened,
                [&](const auto& item) { return item.first.first == result->path.string(); });
  after_change(zoom_ == Rows{0, rows_before});
}

// Brings indices and ranges inside what is open now, and only then tells views.
//   whole  all rows were shown
void Document::after_change(bool whole) {
  const int last = static_cast<int>(runs_.size()) - 1;
  // Something that evicts is more worth a look than `full`, which is usually first.
  const int start = last >= 1 && runs_[0].run().policy.starts_with("full") ? 1 : 0;
  current_ = last < 0 ? -1 : current_ < 0 ? start : std::min(current_, last);
  baseline_ = last < 0 ? -1 : std::clamp(baseline_, 0, last);
  const Rows zoom = whole ? Rows{0, rows()} : inside(zoom_, 2);
  const RowIndex peak = last < 0 ? 0 : peak_row(*current_run());
  const Rows selection = inside(selection_.empty() ? Rows{peak, peak + 1} : selection_, 1);
  const bool zoomed = std::exchange(zoom_, zoom) != zoom;
  const bool selected = std::exchange(selection_, selection) != selection;
  emit runs_changed();
  emit current_changed();
  if (zoomed) emit zoom_changed();
  if (selected) emit selection_changed();
  set_focus(focus_);
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
  emit current_changed();
  set_focus(focus_);
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
  const ShownRun* shown = current_run();
  const int layers = shown == nullptr ? 0 : shown->result->trace.layers();
  const int heads = shown == nullptr ? 0 : shown->run().heads;
  const RowIndex tokens = shown == nullptr ? 0 : shown->result->trace.tokens;
  focus.layer = std::clamp(focus.layer, -1, layers - 1);
  focus.head = std::clamp(focus.head, -1, std::max(heads, 1) - 1);
  focus.token = std::clamp<std::int64_t>(focus.token, -1, tokens - 1);
  if (focus == focus_) return;
  focus_ = focus;
  emit focus_changed();
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
    return std::clamp<RowIndex>(static_cast<RowIndex>(*row), 0, last);
  }
  const SeriesPtr& series = shown.run().bytes ? shown.run().bytes : shown.run().entries;
  return series == nullptr ? last : series->row_of_high(0, series->rows());
}

}  // namespace kvspan::gui
