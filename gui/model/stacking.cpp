// SPDX-License-Identifier: Apache-2.0
#include "gui/model/stacking.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <string>

namespace kvspan::gui {

namespace {

bool ever(const SeriesPtr& series) {
  return series != nullptr && series->over(0, series->rows()).high > 0;
}

struct HeadClass {
  double least;  // share of a full head
  const char* name;
};
constexpr HeadClass kHeadClasses[] = {
    {0.9995, "full"}, {0.5, "50 to 99 %"}, {0.2, "20 to 50 %"}, {0, "under 20 %"}};

// Entry-rows of a head in those of one that keeps all: as the JSON says, else by its polygon.
double footprint_of(const ShownRun& shown, int layer, int head) {
  const Run& run = shown.run();
  const std::string path =
      "per_head.footprint." + std::to_string(layer) + "." + std::to_string(head);
  if (const auto found = figure(run, path)) return *found;
  const auto rows = static_cast<double>(shown.result->trace.tokens);
  const auto i = static_cast<std::size_t>(std::int64_t{layer} * run.heads + head);
  return run.heads_over_time[i].entry_rows() / (rows * (rows + 1) / 2);
}

}  // namespace

Stacking::Stacking(const ShownRun& shown, Quantity quantity, Stack stack)
    : shown_(shown), quantity_(quantity), total_(measure_of(shown, quantity)) {
  const Run& run = shown_.run();
  if (stack == Stack::none || quantity == Quantity::mass) {
    missing_ = "Retained attention has no parts: stack entries, bytes or percent.";
  } else if (total_.series == nullptr || run.heads_over_time.empty() || run.host == nullptr) {
    missing_ = "Stacks need the run's timeline: kvspan run ... --timeline FILE";
  } else {
    overhead_ = quantity == Quantity::bytes && ever(run.overhead);
    if (overhead_) names_.push_back("overhead");
    if (stack == Stack::state) {
      by_state();
    } else {
      by_heads(stack);
      all_places_ = static_cast<int>(names_.size());
      for (int place = 0; place < all_places_; ++place) places_.push_back(place);
    }
  }
}

void Stacking::by_heads(Stack stack) {
  const Run& run = shown_.run();
  const TraceInfo& trace = shown_.result->trace;
  const auto parts = static_cast<int>(names_.size());
  if (stack == Stack::layer) {
    for (int layer = 0; layer < trace.layers(); ++layer) {
      names_.push_back(QString("layer %1").arg(trace.layer_ids[static_cast<std::size_t>(layer)]));
      part_of_head_.insert(part_of_head_.end(), static_cast<std::size_t>(run.heads), parts + layer);
    }
  } else {
    std::vector<std::vector<std::size_t>> classes(std::size(kHeadClasses));
    for (int layer = 0; layer < trace.layers(); ++layer) {
      for (int head = 0; head < run.heads; ++head) {
        const double share = footprint_of(shown_, layer, head);
        std::size_t c = 0;
        while (c + 1 < classes.size() && share < kHeadClasses[c].least) ++c;
        classes[c].push_back(static_cast<std::size_t>(layer * run.heads + head));
      }
    }
    part_of_head_.resize(run.heads_over_time.size());
    for (std::size_t c = 0; c < classes.size(); ++c) {
      if (classes[c].empty()) continue;
      for (const std::size_t head : classes[c]) {
        part_of_head_[head] = static_cast<int>(names_.size());
      }
      names_.push_back(QString("%1: %2 head%3")
                           .arg(kHeadClasses[c].name)
                           .arg(classes[c].size())
                           .arg(classes[c].size() == 1 ? "" : "s"));
    }
  }
  const bool exact = run.one_representation && shown_.result->layout == "ideal";
  if (quantity_ == Quantity::bytes && !exact) {
    note_ = "KV bytes split in proportion to entries";
  }
}

void Stacking::by_state() {
  host_ = ever(shown_.run().host);
  names_.insert(names_.end(), {"active: read in the row", "inactive: held, not read"});
  if (host_) names_.push_back("offloaded");
  all_places_ = 4;
  for (int place = overhead_ ? 0 : 1; place < (host_ ? 4 : 3); ++place) places_.push_back(place);
  if (quantity_ == Quantity::bytes) {
    note_ = "KV bytes split in proportion to entries read";
  }
}

void Stacking::parts_at(RowIndex row, std::span<double> parts) const {
  const Run& run = shown_.run();
  std::fill(parts.begin(), parts.end(), 0.0);
  double rest = total_.at(row);
  if (overhead_) rest -= parts[0] = run.overhead->at(row);
  const auto living = [&] {
    return std::accumulate(
        run.heads_over_time.begin(), run.heads_over_time.end(), 0.0,
        [&](double sum, const Polygon& head) { return sum + static_cast<double>(head.at(row)); });
  };
  if (!part_of_head_.empty()) {
    double entries = 0;
    for (std::size_t h = 0; h < part_of_head_.size(); ++h) {
      const auto held = static_cast<double>(run.heads_over_time[h].at(row));
      parts[static_cast<std::size_t>(part_of_head_[h])] += held;
      entries += held;
    }
    const double each = entries > 0 ? rest / entries : 0;
    for (std::size_t p = overhead_ ? 1 : 0; p < parts.size(); ++p) parts[p] *= each;
    return;
  }
  const double entries = run.entries->at(row);
  const double active = std::min(run.active->at(row), entries);  // some may be read from the host
  const std::size_t first = overhead_ ? 1 : 0;
  const double each = entries > 0 ? rest / entries : 0;
  parts[first] = each * active;
  parts[first + 1] = each * (entries - active);
  if (host_) {
    parts[first + 2] = quantity_ == Quantity::bytes
                           ? run.host->at(row)
                           : std::max(0.0, living() - entries) * total_.scale;
  }
}

SampledStack sample_stack(const Stacking& stacking, const Measure& total, const Columns& columns) {
  SampledStack sampled;
  std::vector<double> parts(stacking.names().size());
  sampled.tops.resize(parts.size());
  const auto add = [&](double x) {
    sampled.x.push_back(x);
    double top = 0;
    for (std::size_t p = 0; p < parts.size(); ++p) sampled.tops[p].push_back(top += parts[p]);
  };
  for (int c = 0; c < columns.count(); ++c) {
    Rows rows = columns.at(c);
    rows.end = std::min(rows.end, total.series->rows());
    if (rows.empty()) break;
    stacking.parts_at(total.series->row_of_high(rows.begin, rows.end), parts);
    const auto begin = static_cast<double>(rows.begin);
    const auto end = static_cast<double>(rows.end);
    // A stack reaches from end to end of what is shown.
    if (rows.size() == 1 || c == 0) add(begin);
    if (rows.size() > 1) add((begin + end) / 2);
    if (rows.size() == 1 || c + 1 == columns.count()) add(end);
  }
  return sampled;
}

}  // namespace kvspan::gui
