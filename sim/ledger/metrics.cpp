// SPDX-License-Identifier: Apache-2.0
// One head at a time, one layer at a time. An entry held as representation r in the rows [a, b) is
// two events, +r at a and -r at b; the prefix sum of all events up to x, less the newborn of row x,
// is the state "born before x, not dead by x", from which every figure follows:
//
//   state x       before the pass that begins at x, and after the eviction of the pass ending there
//   x + newborn   during row x; for the last row of a pass: its end, before the eviction
//
// Cost: O(tokens + changes) per head and layout. Layers are added to per-row totals and forgotten.
#include "sim/ledger/metrics.h"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "sim/ledger/layouts.h"

namespace kvspan {
namespace {

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

struct Held {
  std::int64_t entries = 0, bytes = 0;
  Held& operator+=(const Held& other) {
    entries += other.entries;
    bytes += other.bytes;
    return *this;
  }
};

// Events of a run of rows, [tokens + 1]: what dies at N needs no case of its own.
class Events {
 public:
  explicit Events(RowIndex tokens) : delta_(index(tokens) + 1) {}
  // Adds (sign 1) or takes back (-1) something held in the rows [from, to).
  void hold(RowIndex from, RowIndex to, const Held& what, std::int64_t sign) {
    Held& begin = delta_[index(from)];
    begin.entries += sign * what.entries;
    begin.bytes += sign * what.bytes;
    Held& end = delta_[index(to)];
    end.entries -= sign * what.entries;
    end.bytes -= sign * what.bytes;
  }
  void add(RowIndex row, const Held& what) { delta_[index(row)] += what; }
  [[nodiscard]] const Held& at(RowIndex row) const { return delta_[index(row)]; }
  void clear() { std::fill(delta_.begin(), delta_.end(), Held{}); }

 private:
  std::vector<Held> delta_;
};

Held on_device(const Representation& r) {
  return {r.entries >= 0 ? r.entries : (r.device_bytes > 0 ? 1 : 0), r.device_bytes};
}

// Entries that are on the host only, but the host bytes of copies, too: they take memory there.
Held on_host(const Representation& r) {
  return {r.host_bytes > 0 && on_device(r).entries == 0 ? 1 : 0, r.host_bytes};
}

// Walks the entries of a ledger head by head.
class Lives {
 public:
  explicit Lives(const Ledger& ledger)
      : ledger_(&ledger),
        host_(ledger.plan.tokens),
        read_(ledger.plan.tokens),
        device_(ledger.plan.tokens),
        left_(index(ledger.plan.tokens) + 1, 0),
        entries_(index(ledger.plan.tokens), 0),
        bytes_(index(ledger.plan.tokens), 0),
        gone_(index(ledger.plan.tokens), 0) {}

  void begin_layer(int layer) {
    layer_ = layer;
    const std::vector<std::int64_t>& windows = ledger_->sliding_window;
    window_ = windows.empty() ? 0 : windows[index(layer)];
    std::fill(left_.begin(), left_.end(), char{0});
    // The changes of the layer, by head; those of a head stay in order of row.
    by_head_.assign(index(ledger_->heads), {});
    if (ledger_->changes.empty()) return;
    const std::vector<Change>& changes = ledger_->changes[index(layer)];
    assert(std::is_sorted(changes.begin(), changes.end(),
                          [](const Change& a, const Change& b) { return a.row < b.row; }));
    for (const Change& change : changes) {
      by_head_[index(change.head)].push_back(&change);
    }
  }

  // The next head's rows, valid until the next call.
  HeadRows head(int head) {
    const RowIndex tokens = ledger_->plan.tokens;
    const std::span<const std::uint32_t> deaths = ledger_->deaths(layer_, head);
    const Representation& born = ledger_->representations[0];
    const Held newborn = on_device(born);
    const Held newborn_host = on_host(born);
    device_.clear();
    for (RowIndex token = 0; token < tokens; ++token) {
      const RowIndex death = deaths[index(token)];
      assert(death > token && death <= tokens);
      device_.hold(token, death, newborn, 1);
      if (window_ > 0) read_.hold(token, last_read(token, death), newborn, 1);
      if (newborn_host.bytes > 0) host_.hold(token, death, newborn_host, 1);
      gone_[index(token)] = newborn.entries > 0 ? death : 0;
    }
    apply_changes(by_head_[index(head)], deaths);
    // A block of the paged layouts is held until gone_; a layer evicts where an entry leaves the
    // device, by death or for the host.
    Held state;
    for (RowIndex row = 0; row < tokens; ++row) {
      state += device_.at(row);
      if (window_ == 0) read_.add(row, device_.at(row));  // what is there is read
      entries_[index(row)] = state.entries - newborn.entries;
      bytes_[index(row)] = state.bytes - newborn.bytes;
      left_[index(gone_[index(row)])] = 1;
    }
    return {entries_, bytes_, gone_};
  }

  // True if an entry of the layer's heads so far leaves the device at `row`.
  [[nodiscard]] bool evicts_at(RowIndex row) const { return left_[index(row)] != 0; }
  // Of all layers so far.
  [[nodiscard]] const Events& host() const { return host_; }
  [[nodiscard]] const Events& read() const { return read_; }

 private:
  // End of the rows that read a token: a row reads the keys inside the model's window, which are
  // those with row - window < token. REQUIRES: window_ > 0.
  [[nodiscard]] RowIndex last_read(RowIndex token, RowIndex death) const {
    return std::min(death, token + window_);
  }

  void apply_changes(const std::vector<const Change*>& changes,
                     std::span<const std::uint32_t> deaths) {
    if (changes.empty()) return;
    held_as_.assign(deaths.size(), 0);
    for (const Change* change : changes) {
      const RowIndex token = change->token;
      const RowIndex death = deaths[index(token)];
      // Entries are born in representation 0, so that the first row that can differ is the next.
      const RowIndex from = std::max(change->row, token + 1);
      if (from >= death) continue;
      int& held_as = held_as_[index(token)];
      const Representation& old = ledger_->representations[index(held_as)];
      const Representation& now = ledger_->representations[index(change->representation)];
      held_as = change->representation;
      device_.hold(from, death, on_device(old), -1);
      device_.hold(from, death, on_device(now), 1);
      host_.hold(from, death, on_host(old), -1);
      host_.hold(from, death, on_host(now), 1);
      if (window_ > 0 && from < last_read(token, death)) {
        const RowIndex end = last_read(token, death);
        read_.hold(from, end, on_device(old), -1);
        read_.hold(from, end, on_device(now), 1);
      }
      if (on_device(now).entries > 0) {
        // It may have left before and come back: that was an eviction of its own.
        if (on_device(old).entries == 0) left_[index(gone_[index(token)])] = 1;
        gone_[index(token)] = death;
      } else if (on_device(old).entries > 0) {
        gone_[index(token)] = from;
      }
    }
  }

  const Ledger* ledger_;
  int layer_ = 0;
  std::int64_t window_ = 0;
  std::vector<std::vector<const Change*>> by_head_;
  Events host_, read_;  // of the run
  Events device_;       // of one head
  std::vector<char> left_;
  std::vector<int> held_as_;
  std::vector<std::int64_t> entries_, bytes_;
  std::vector<RowIndex> gone_;
};

// An instant of a peak: KV bytes, and the entries that overhead is charged for.
struct Instant {
  std::int64_t kv = 0, entries = 0;
  Instant& operator+=(const Instant& other) {
    kv += other.kv;
    entries += other.entries;
    return *this;
  }
  [[nodiscard]] std::int64_t entry_total(const Charge& charge) const {
    return kv + charge.entry * entries;
  }
};
Instant operator+(Instant a, const Instant& b) { return a += b; }

// The layerwise peak of one prefill pass, layer by layer and without a list of layers:
//
//   max_l( sum_{i<l} after_i + end_l + copy_l + sum_{i>l} past_i )
//
// A further layer adds its past to the best so far, and competes with what the layers before it
// hold after their evictions.
class LayerwisePass {
 public:
  void add_layer(const Instant& past, const Instant& end_and_copy, const Instant& after,
                 const Charge& charge) {
    best_ += past;
    const Instant here = after_ + end_and_copy;
    if (first_ || here.entry_total(charge) > best_.entry_total(charge)) best_ = here;
    after_ += after;
    first_ = false;
  }
  [[nodiscard]] const Instant& best() const { return best_; }

 private:
  bool first_ = true;
  Instant best_, after_;
};

// One layout, summed over layers.
struct LayoutRun {
  std::string name;
  bool copies = false;  // survivors, when a layer evicts
  std::unique_ptr<LayerLayout> layer;
  std::vector<std::int64_t> kv;          // [tokens] bytes during each row
  std::vector<LayerwisePass> layerwise;  // [prefill passes], or empty
};

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

PeakBytes find_peak(const Ledger& ledger, const LayoutRun& run,
                    const std::vector<std::int64_t>& overhead) {
  PeakFinder finder(ledger.plan.prompt);
  for (std::size_t i = 0; i < ledger.plan.ends.size(); ++i) {
    const Pass pass = pass_at(ledger.plan, i);
    if (i < run.layerwise.size()) {
      const Instant& best = run.layerwise[i].best();
      finder.add(pass.end - 1, pass.begin, best.kv,
                 ledger.charge.entry * best.entries + ledger.fixed_overhead(pass.end - 1));
      continue;
    }
    for (RowIndex row = pass.begin; row < pass.end; ++row) {
      finder.add(row, pass.begin, run.kv[index(row)], overhead[index(row)]);
    }
  }
  return finder.peak();
}

std::size_t prefill_passes(const PassPlan& plan) {
  return index(std::upper_bound(plan.ends.begin(), plan.ends.end(), plan.prompt) -
               plan.ends.begin());
}

// Adds one layer in one layout to the totals. Returns the peak of the layer alone.
//   layer, entries: KV bytes and device entries, row by row
std::int64_t add_layer(const Ledger& ledger, const Lives& lives, const LayerRows& layer,
                       const LayerRows& entries, LayoutRun& run) {
  std::int64_t peak = 0;
  RowIndex row = 0;
  for (std::size_t i = 0; i < run.layerwise.size(); ++i) {
    const Pass pass = pass_at(ledger.plan, i);
    const std::size_t begin = index(pass.begin);
    const std::size_t last = index(pass.end - 1);
    const Instant past{layer.before[begin], entries.before[begin]};
    Instant end{layer.during[last], entries.during[last]};
    Instant after = end;  // nothing is evicted after the last pass
    if (pass.end < ledger.plan.tokens) {
      after = {layer.before[index(pass.end)], entries.before[index(pass.end)]};
      // Overhead is of the entries, which a copy of their bytes does not multiply.
      if (run.copies && lives.evicts_at(pass.end)) end.kv += after.kv;
    }
    run.layerwise[i].add_layer(past, end, after, ledger.charge);
    peak = std::max(peak, end.entry_total(ledger.charge));
    row = pass.end;
  }
  for (; row < ledger.plan.tokens; ++row) {
    const Instant now{layer.during[index(row)], entries.during[index(row)]};
    peak = std::max(peak, now.entry_total(ledger.charge));
  }
  for (std::size_t x = 0; x < run.kv.size(); ++x) run.kv[x] += layer.during[x];
  return peak;
}

std::vector<LayoutRun> make_runs(const Ledger& ledger, const Accounting& accounting,
                                 const LayerGeometry& geometry) {
  std::vector<std::string> names = {accounting.layout};
  for (const std::string& name : standard_layouts()) {
    if (name != accounting.layout) names.push_back(name);
  }
  std::vector<LayoutRun> runs;
  for (const std::string& name : names) {
    const Layout layout = parse_layout(name);
    LayoutRun run;
    run.name = name;
    run.copies = copies_survivors(layout);
    run.layer = make_layer_layout(layout, geometry);
    run.kv.assign(index(geometry.tokens), 0);
    if (accounting.layerwise) run.layerwise.resize(prefill_passes(ledger.plan));
    runs.push_back(std::move(run));
  }
  return runs;
}

double ratio(std::int64_t part, std::int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

// Everything that the entries of each layer contribute; fills per_layer, head_* and the runs.
//   resident [tokens], zero: device entries during each row
void walk_layers(const Ledger& ledger, const LayerGeometry& geometry, Lives& lives,
                 std::vector<LayoutRun>& runs, std::vector<std::int64_t>& resident, Metrics& out) {
  const RowIndex tokens = ledger.plan.tokens;
  const std::int64_t full_head = tokens * (tokens + 1) / 2;
  LayerRows layer{std::vector<std::int64_t>(index(tokens)),
                  std::vector<std::int64_t>(index(tokens))};
  LayerRows entries = layer;
  for (int l = 0; l < ledger.layers; ++l) {
    lives.begin_layer(l);
    std::fill(entries.before.begin(), entries.before.end(), 0);
    std::vector<double>& footprints = out.head_footprint.emplace_back();
    std::vector<double>& peaks = out.head_peak_kv.emplace_back();
    for (int h = 0; h < ledger.heads; ++h) {
      const HeadRows head = lives.head(h);
      std::int64_t entry_rows = 0;
      std::int64_t peak = 0;
      for (std::size_t x = 0; x < head.entries.size(); ++x) {
        const std::int64_t during = head.entries[x] + geometry.newborn;
        entry_rows += during;
        peak = std::max(peak, during);
        entries.before[x] += head.entries[x];
      }
      footprints.push_back(ratio(entry_rows, full_head));
      peaks.push_back(ratio(peak, tokens));
      for (const LayoutRun& run : runs) run.layer->add_head(head);
    }

    std::int64_t entry_rows = 0;
    std::int64_t peak = 0;
    for (std::size_t x = 0; x < resident.size(); ++x) {
      entries.during[x] = entries.before[x] + geometry.newborn * ledger.heads;
      entry_rows += entries.during[x];
      peak = std::max(peak, entries.during[x]);
      resident[x] += entries.during[x];
    }
    out.entry_rows += entry_rows;
    LayerMetrics& metrics = out.per_layer.emplace_back();
    metrics.footprint = ratio(entry_rows, full_head * ledger.heads);
    metrics.peak_kv = ratio(peak, tokens * ledger.heads);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      runs[r].layer->finish(layer);
      const std::int64_t alone = add_layer(ledger, lives, layer, entries, runs[r]);
      if (r == 0) metrics.peak_bytes = alone;
    }
  }
}

// What is read, and what lies on the host, in each row.
void sum_events(const Ledger& ledger, const Lives& lives, Metrics& out) {
  Held host;
  Held read;
  std::int64_t host_rows = 0;
  for (RowIndex row = 0; row < ledger.plan.tokens; ++row) {
    host += lives.host().at(row);
    host_rows += host.entries;
    out.timeline.host_bytes.push_back(host.bytes);
    out.host_peak_bytes = std::max(out.host_peak_bytes, host.bytes);
    read += lives.read().at(row);
    Held now = read;
    if (!ledger.selected.empty()) {
      // Which entries a selector chose is not in the ledger: they count as they were born.
      now.entries = ledger.selected[index(row)];
      now.bytes = now.entries * ledger.representations[0].device_bytes;
    }
    out.entries_read += now.entries;
    out.bytes_read += now.bytes;
    out.timeline.active_entries.push_back(now.entries);
  }
  out.host_footprint = ratio(host_rows, out.full_entry_rows);
}

}  // namespace

Metrics compute_metrics(const Ledger& ledger, const Accounting& accounting) {
  const RowIndex tokens = ledger.plan.tokens;
  assert(tokens > 0 && ledger.layers > 0 && ledger.heads > 0 && !ledger.representations.empty());
  assert(ledger.death.size() == ledger.offset(ledger.layers, 0));
  assert(ledger.selected.empty() || ledger.selected.size() == index(tokens));
  assert(!ledger.plan.ends.empty() && ledger.plan.ends.back() == tokens);

  const Held newborn = on_device(ledger.representations[0]);
  const LayerGeometry geometry{tokens, ledger.heads, ledger.query_heads, newborn.bytes,
                               newborn.entries};
  std::vector<LayoutRun> runs = make_runs(ledger, accounting, geometry);
  const std::int64_t stored_heads = std::int64_t{ledger.layers} * ledger.heads;

  Metrics out;
  out.full_entry_rows = stored_heads * (tokens * (tokens + 1) / 2);
  out.timeline.resident_entries.assign(index(tokens), 0);
  Lives lives(ledger);
  walk_layers(ledger, geometry, lives, runs, out.timeline.resident_entries, out);
  sum_events(ledger, lives, out);

  const std::vector<std::int64_t>& resident = out.timeline.resident_entries;
  out.footprint = ratio(out.entry_rows, out.full_entry_rows);
  out.peak_kv = ratio(*std::max_element(resident.begin(), resident.end()), stored_heads * tokens);
  // Whatever the layout: a policy keeps its state for the entries that are there.
  for (std::size_t row = 0; row < resident.size(); ++row) {
    out.timeline.overhead_bytes.push_back(ledger.charge.entry * resident[row] +
                                          ledger.fixed_overhead(static_cast<RowIndex>(row)));
  }
  for (const LayoutRun& run : runs) {
    const PeakBytes peak = find_peak(ledger, run, out.timeline.overhead_bytes);
    if (&run == &runs[0]) {
      out.peak_bytes = peak;
    } else {
      out.layouts[run.name] = peak;
    }
  }
  for (std::size_t row = 0; row < resident.size(); ++row) {
    const std::int64_t bytes = runs[0].kv[row] + out.timeline.overhead_bytes[row];
    out.timeline.resident_bytes.push_back(bytes);
    out.byte_rows += bytes;
  }
  return out;
}

}  // namespace kvspan
