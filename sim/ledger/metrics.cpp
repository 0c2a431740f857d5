// SPDX-License-Identifier: Apache-2.0
// One head at a time, one layer at a time: lives.h makes rows of entries, layouts.h bytes of them,
// peaks.h finds the largest instant. Layers are added to per-row totals and forgotten.
// Cost: O(tokens + changes) per head and layout.
#include "sim/ledger/metrics.h"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <memory>
#include <utility>

namespace kvspan {
namespace {

// The run in one layout: of a layer, and of all layers so far.
struct LayoutRun {
  std::string name;
  std::unique_ptr<LayerLayout> layer;
  LayoutPeak peak;
};

std::vector<LayoutRun> make_runs(const Ledger& ledger, const Accounting& accounting,
                                 const LayerGeometry& geometry) {
  std::vector<std::string> names = {accounting.layout};
  for (const std::string& name : standard_layouts()) {
    if (name != accounting.layout) names.push_back(name);
  }
  std::vector<LayoutRun> runs;
  for (const std::string& name : names) {
    const Layout layout = parse_layout(name);
    runs.push_back({name, make_layer_layout(layout, geometry),
                    LayoutPeak(ledger, layout, accounting.layerwise)});
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
      const std::int64_t alone = runs[r].peak.add_layer(lives, layer, entries);
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
  const LayerGeometry geometry{tokens,        ledger.heads,    ledger.query_heads,
                               newborn.bytes, newborn.entries, ledger.plan.ends};
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
    const PeakBytes peak = run.peak.peak(out.timeline.overhead_bytes);
    if (&run == &runs[0]) {
      out.peak_bytes = peak;
    } else {
      out.layouts[run.name] = peak;
    }
  }
  for (std::size_t row = 0; row < resident.size(); ++row) {
    const std::int64_t bytes = runs[0].peak.kv()[row] + out.timeline.overhead_bytes[row];
    out.timeline.resident_bytes.push_back(bytes);
    out.byte_rows += bytes;
  }
  return out;
}

}  // namespace kvspan
