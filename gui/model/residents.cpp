// SPDX-License-Identifier: Apache-2.0
#include "gui/model/residents.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <span>

#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {
namespace {

constexpr std::uint32_t kNoDeath = std::numeric_limits<std::uint32_t>::max();

// How the entries of one layer are held at a row: [heads][token], only those that changed.
class HeldAs {
 public:
  HeldAs(const LifetimesFile& file, int run, const std::vector<Change>& changes, int heads,
         RowIndex row)
      : of_(&file.runs()[index(run)]), row_(row), held_(index(heads)) {
    for (const Change& change : changes) {
      // An entry is born as representation 0, so that the next row is the first that can differ.
      if (std::max<RowIndex>(change.row, change.token + 1) > row) continue;
      std::vector<int>& head = held_[index(change.head)];
      if (head.empty()) head.assign(index(row + 1), 0);
      head[index(change.token)] = change.representation;
    }
  }

  // Of all entries of a head that are there.
  [[nodiscard]] HeadHolding sum(int head, std::span<const std::uint32_t> deaths) const {
    const std::vector<int>& held = held_[index(head)];
    std::vector<std::int64_t> count(of_->representations.size(), 0);
    for (RowIndex t = 0; t <= row_; ++t) {
      if (static_cast<RowIndex>(deaths[index(t)]) <= row_) continue;
      ++count[held.empty() ? 0 : index(held[index(t)])];
    }
    HeadHolding out;
    for (std::size_t i = 0; i < count.size(); ++i) {
      const Representation& as = of_->representations[i];
      const std::int64_t entries = as.entries >= 0 ? as.entries : as.device_bytes > 0 ? 1 : 0;
      out.entries += count[i] * entries;
      out.bytes += count[i] * (as.device_bytes + entries * of_->charge.entry);
      out.host_bytes += count[i] * as.host_bytes;
      if (entries == 0 && as.host_bytes > 0) out.host_entries += count[i];
    }
    return out;
  }

 private:
  const LifetimesFile::Run* of_;
  RowIndex row_;
  std::vector<std::vector<int>> held_;
};

}  // namespace

HeadHolding& HeadHolding::operator+=(const HeadHolding& other) {
  entries += other.entries;
  bytes += other.bytes;
  host_bytes += other.host_bytes;
  entries_before += other.entries_before;
  host_entries += other.host_entries;
  return *this;
}

HeadHolding Holdings::layer_sum(int layer) const {
  HeadHolding sum;
  for (int head = 0; head < heads; ++head) sum += at(layer, head);
  return sum;
}

HeadHolding Holdings::sum() const {
  HeadHolding sum;
  for (const HeadHolding& head : of) sum += head;
  return sum;
}

Holdings holdings_at(const Result& result, std::size_t run, RowIndex row, RowIndex since,
                     HeadScope scope, const std::function<bool()>& cancelled) {
  Holdings out;
  out.row = row;
  out.since = since;
  out.scope = scope;
  out.layers = result.trace.layers();
  out.heads = result.runs[run].heads;
  if (result.lifetimes == nullptr) {
    const Run& of = result.runs[run];
    const std::int64_t bytes = of.one_representation ? of.newborn_bytes : 0;
    for (const Polygon& head : of.heads_over_time) {
      const std::int64_t entries = head.at(row);
      out.of.push_back({entries, entries * bytes, 0, head.at(since), 0});
    }
    return out;
  }
  const LifetimesFile& file = *result.lifetimes;
  const int r = static_cast<int>(run);
  out.held_by.assign(index(row + 1), 0);
  out.first.assign(index(row + 1), kNoDeath);
  out.last.assign(index(row + 1), 0);
  for (int layer = 0; layer < out.layers; ++layer) {
    const std::vector<Change> changes = file.changes(r, layer);
    const HeldAs now(file, r, changes, out.heads, row);
    std::optional<HeldAs> before;  // mostly an instant is looked at
    if (since != row) before.emplace(file, r, changes, out.heads, since);
    for (int head = 0; head < out.heads; ++head) {
      if (cancelled && cancelled()) throw Interrupted();
      const auto deaths = file.deaths(r, layer, head);
      HeadHolding& holding = out.of.emplace_back(now.sum(head, deaths));
      holding.entries_before = before ? before->sum(head, deaths).entries : holding.entries;
      if (!scope.holds(layer, head)) continue;
      ++out.scope_heads;
      for (std::size_t t = 0; t <= index(row); ++t) {
        if (static_cast<RowIndex>(deaths[t]) <= row) continue;
        ++out.held_by[t];
        out.first[t] = std::min(out.first[t], deaths[t]);
        out.last[t] = std::max(out.last[t], deaths[t]);
      }
    }
  }
  return out;
}

QString summary_of(const Holdings& holdings, const QString& label) {
  const HeadHolding sum = holdings.sum();
  const double full = static_cast<double>(holdings.row + 1) * holdings.layers * holdings.heads;
  QString text =
      QString("%1 holds %2 entries%3 in row %4, %5 of a full cache")
          .arg(label, count_text(sum.entries),
               sum.host_entries == 0
                   ? QString()
                   : " on the device, " + count_text(sum.host_entries) + " on the host,",
               count_text(holdings.row), percent_text(static_cast<double>(sum.entries) / full));
  if (sum.bytes > 0) text += ", " + bytes_text(static_cast<double>(sum.bytes));
  if (sum.host_bytes > 0) {
    text += QString(" (and %1 on the host)").arg(bytes_text(static_cast<double>(sum.host_bytes)));
  }
  if (holdings.since < holdings.row) {
    const std::int64_t change = sum.entries - sum.entries_before;
    const QString more =
        change == 0 ? QString("as many as")
                    : count_text(std::abs(change)) + (change < 0 ? " fewer than" : " more than");
    text += QString("; %1 in row %2").arg(more, count_text(holdings.since));
  }
  return text;
}

}  // namespace kvspan::gui
