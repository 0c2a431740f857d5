// SPDX-License-Identifier: Apache-2.0
#include "gui/model/kept_sets.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "gui/model/lives.h"
#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {

double Overlap::jaccard() const {
  const std::int64_t either = both + current + baseline;
  return either == 0 ? 1 : static_cast<double>(both) / static_cast<double>(either);
}

Overlap& Overlap::operator+=(const Overlap& other) {
  both += other.both;
  current += other.current;
  baseline += other.baseline;
  return *this;
}

QString why_not_compared(const ShownRun* current, const ShownRun* baseline) {
  for (const ShownRun* shown : {current, baseline}) {
    if (const QString why = why_no_lives(shown); !why.isEmpty()) {
      return shown == nullptr
                 ? why
                 : QString("%1: %2").arg(QString::fromStdString(shown->run().label), why);
    }
  }
  const TraceInfo& a = current->result->trace;
  const TraceInfo& b = baseline->result->trace;
  if (a.tokens != b.tokens || a.layer_ids != b.layer_ids || a.sha256 != b.sha256) {
    return QString(
               "Kept sets are compared on one trace: the current run has %1 tokens in %2 layers, "
               "the baseline %3 in %4%5.")
        .arg(count_text(a.tokens))
        .arg(a.layers())
        .arg(count_text(b.tokens))
        .arg(b.layers())
        .arg(a.tokens == b.tokens && a.layer_ids == b.layer_ids ? ", of another trace" : "");
  }
  const int more = std::max(current->run().heads, baseline->run().heads);
  const int less = std::min(current->run().heads, baseline->run().heads);
  if (more % less != 0) {
    return QString(
               "Kept sets cannot be compared: the current run stores %1 heads, the baseline %2.")
        .arg(current->run().heads)
        .arg(baseline->run().heads);
  }
  return {};
}

KeptSets kept_sets(const ShownRun& current, const ShownRun& baseline, RowIndex row, HeadScope scope,
                   const std::function<bool()>& cancelled) {
  const LifetimesFile& a = *current.result->lifetimes;
  const LifetimesFile& b = *baseline.result->lifetimes;
  const int heads_a = current.run().heads;
  const int heads_b = baseline.run().heads;
  KeptSets out;
  out.row = row;
  out.scope = scope;
  out.layers = a.layers();
  out.heads = std::max(heads_a, heads_b);
  for (auto* tokens : {&out.both, &out.current, &out.baseline})
    tokens->assign(static_cast<std::size_t>(row + 1), 0);
  for (int layer = 0; layer < out.layers; ++layer) {
    for (int head = 0; head < out.heads; ++head) {
      if (cancelled && cancelled()) throw Interrupted();
      const auto deaths_a =
          a.deaths(static_cast<int>(current.index), layer, head * heads_a / out.heads);
      const auto deaths_b =
          b.deaths(static_cast<int>(baseline.index), layer, head * heads_b / out.heads);
      const bool counts = scope.holds(layer, head);
      Overlap& overlap = out.of.emplace_back();
      for (std::size_t t = 0; t <= static_cast<std::size_t>(row); ++t) {
        const bool in_a = static_cast<RowIndex>(deaths_a[t]) > row;
        const bool in_b = static_cast<RowIndex>(deaths_b[t]) > row;
        overlap.both += in_a && in_b ? 1 : 0;
        overlap.current += in_a && !in_b ? 1 : 0;
        overlap.baseline += !in_a && in_b ? 1 : 0;
        if (!counts) continue;
        out.both[t] += in_a && in_b ? 1 : 0;
        out.current[t] += in_a && !in_b ? 1 : 0;
        out.baseline[t] += !in_a && in_b ? 1 : 0;
      }
      if (!counts) continue;
      out.sum += overlap;
      ++out.scope_heads;
    }
  }
  return out;
}

RowIndex telling_row(const ShownRun& current, const ShownRun& baseline) {
  const RowIndex last = current.result->trace.tokens - 1;
  if (!why_not_compared(&current, &baseline).isEmpty()) return last;
  const LifetimesFile& a = *current.result->lifetimes;
  const LifetimesFile& b = *baseline.result->lifetimes;
  const int heads = std::max(current.run().heads, baseline.run().heads);
  // An entry is held by one of the two from the earlier death to the later one.
  std::vector<std::int64_t> change(static_cast<std::size_t>(last) + 2);
  for (int layer = 0; layer < a.layers(); ++layer) {
    for (int head = 0; head < heads; ++head) {
      const auto deaths_a =
          a.deaths(static_cast<int>(current.index), layer, head * current.run().heads / heads);
      const auto deaths_b =
          b.deaths(static_cast<int>(baseline.index), layer, head * baseline.run().heads / heads);
      for (std::size_t t = 0; t + 1 < change.size(); ++t) {
        const auto row_of = [&](std::size_t death) {
          return std::clamp(death, t, change.size() - 1);
        };
        ++change[row_of(std::min(deaths_a[t], deaths_b[t]))];
        --change[row_of(std::max(deaths_a[t], deaths_b[t]))];
      }
    }
  }
  std::partial_sum(change.begin(), change.end(), change.begin());
  const auto most = std::max_element(change.rbegin() + 1, change.rend());
  return static_cast<RowIndex>(change.rend() - most) - 1;
}

}  // namespace kvspan::gui
