// SPDX-License-Identifier: Apache-2.0
#include "sim/ledger/peaks.h"

#include <algorithm>
#include <cstddef>

namespace kvspan {
namespace {

Instant operator+(Instant a, const Instant& b) { return a += b; }

std::size_t prefill_passes(const PassPlan& plan) {
  return index(std::upper_bound(plan.ends.begin(), plan.ends.end(), plan.prompt) -
               plan.ends.begin());
}

class PeakFinder {
 public:
  explicit PeakFinder(RowIndex prompt) : prompt_(prompt) {}
  // Rows in order; `pass_begin` is that of the pass which the row is in.
  void add(RowIndex row, RowIndex pass_begin, std::int64_t kv, std::int64_t overhead) {
    const std::int64_t total = kv + overhead;
    std::int64_t& phase = row < prompt_ ? peak_.prefill : peak_.decode;
    phase = std::max(phase, total);
    // The first pass that reaches the maximum, and of it the last row, since a peak is the end of a
    // pass: with blocks, earlier rows of the pass may hold as much.
    if (first_ || total > peak_.total || (total == peak_.total && peak_.row >= pass_begin)) {
      peak_.total = total;
      peak_.kv = kv;
      peak_.overhead = overhead;
      peak_.row = row;
      first_ = false;
    }
  }
  [[nodiscard]] const PeakBytes& peak() const { return peak_; }

 private:
  RowIndex prompt_;
  bool first_ = true;
  PeakBytes peak_;
};

}  // namespace

void LayerwisePass::add_layer(const Instant& past, const Instant& end_and_copy,
                              const Instant& after, const Charge& charge) {
  best_ += past;
  const Instant here = after_ + end_and_copy;
  if (first_ || here.entry_total(charge) > best_.entry_total(charge)) best_ = here;
  after_ += after;
  first_ = false;
}

LayoutPeak::LayoutPeak(const Ledger& ledger, const Layout& layout, bool layerwise)
    : ledger_(&ledger),
      copies_(copies_survivors(layout)),
      kv_(index(ledger.plan.tokens), 0),
      layerwise_(layerwise ? prefill_passes(ledger.plan) : 0) {}

std::int64_t LayoutPeak::add_layer(const Lives& lives, const LayerRows& kv,
                                   const LayerRows& entries) {
  const RowIndex tokens = ledger_->plan.tokens;
  const Charge& charge = ledger_->charge;
  std::int64_t peak = 0;
  RowIndex row = 0;
  for (std::size_t i = 0; i < layerwise_.size(); ++i) {
    const Pass pass = pass_at(ledger_->plan, i);
    const std::size_t begin = index(pass.begin);
    const std::size_t last = index(pass.end - 1);
    Instant end{kv.during[last], entries.during[last]};
    const bool waits = ledger_->waits_for_layers && pass.is_evict_point();
    const Instant past = waits ? end : Instant{kv.before[begin], entries.before[begin]};
    Instant after = end;  // nothing is evicted after the last pass
    if (pass.end < tokens) {
      after = {kv.before[index(pass.end)], entries.before[index(pass.end)]};
      // Overhead is of the entries, which a copy of their bytes does not multiply.
      if (copies_ && lives.evicts_at(pass.end)) end.kv += after.kv;
    }
    layerwise_[i].add_layer(past, end, after, charge);
    peak = std::max(peak, end.entry_total(charge));
    row = pass.end;
  }
  for (; row < tokens; ++row) {
    const Instant now{kv.during[index(row)], entries.during[index(row)]};
    peak = std::max(peak, now.entry_total(charge));
  }
  for (std::size_t x = 0; x < kv_.size(); ++x) kv_[x] += kv.during[x];
  return peak;
}

PeakBytes LayoutPeak::peak(const std::vector<std::int64_t>& overhead) const {
  PeakFinder finder(ledger_->plan.prompt);
  for (std::size_t i = 0; i < ledger_->plan.ends.size(); ++i) {
    const Pass pass = pass_at(ledger_->plan, i);
    if (i < layerwise_.size()) {
      const Instant& best = layerwise_[i].best();
      finder.add(pass.end - 1, pass.begin, best.kv,
                 ledger_->charge.entry * best.entries + ledger_->fixed_overhead(pass.end - 1));
      continue;
    }
    for (RowIndex row = pass.begin; row < pass.end; ++row)
      finder.add(row, pass.begin, kv_[index(row)], overhead[index(row)]);
  }
  return finder.peak();
}

}  // namespace kvspan
