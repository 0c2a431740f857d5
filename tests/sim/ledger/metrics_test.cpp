// SPDX-License-Identifier: Apache-2.0
// Metrics of a hand-made ledger, of the paper's vectors, and of random ledgers against plain loops
// over all entries of every row, and the twin.
#include "sim/ledger/metrics.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include <catch2/catch.hpp>

#include "tests/support/ledgers.h"
#include "tests/twin/twin.h"

using namespace kvspan;
using namespace kvspan::test;

using Counts = std::vector<std::int64_t>;

namespace {

// ---- The oracle: every entry of every row -------------------------------------------------------

// Plain loops. A state is "born before row `born`, dead ones up to row `at` removed".
class Plain {
 public:
  explicit Plain(const Ledger& ledger) : ledger_(&ledger) {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(ledger.death.size()); ++i) {
      const RowIndex tokens = ledger.plan.tokens;
      const int head = static_cast<int>(i / tokens) % ledger.heads;
      const int layer = static_cast<int>(i / tokens) / ledger.heads;
      RowIndex gone = 0;
      for (RowIndex row = i % tokens; row < tokens; ++row) {
        if (on_device(layer, head, i % tokens, tokens, row)) gone = row + 1;
      }
      gone_.push_back(gone);
    }
  }

  // Nothing if the entry is not alive.
  const Representation* held(int layer, int head, RowIndex token, RowIndex born,
                             RowIndex at_row) const {
    const RowIndex death = ledger_->deaths(layer, head)[at(token)];
    if (token >= born || death <= at_row) return nullptr;
    int representation = 0;
    if (!ledger_->changes.empty()) {
      for (const Change& change : ledger_->changes[at(layer)]) {
        if (change.head == head && change.token == token && change.row <= at_row &&
            change.row < death) {
          representation = change.representation;
        }
      }
    }
    return &ledger_->representations[at(representation)];
  }
  bool on_device(int layer, int head, RowIndex token, RowIndex born, RowIndex at_row) const {
    const Representation* r = held(layer, head, token, born, at_row);
    return r != nullptr && r->device_bytes > 0;
  }

  std::int64_t entries(int layer, int head, RowIndex born, RowIndex at_row) const {
    std::int64_t count = 0;
    for (RowIndex t = 0; t < born; ++t) count += on_device(layer, head, t, born, at_row) ? 1 : 0;
    return count;
  }
  std::int64_t bytes(int layer, int head, RowIndex born, RowIndex at_row) const {
    std::int64_t sum = 0;
    for (RowIndex t = 0; t < born; ++t) {
      if (const Representation* r = held(layer, head, t, born, at_row)) sum += r->device_bytes;
    }
    return sum;
  }
  std::int64_t layer_entries(int layer, RowIndex born, RowIndex at_row) const {
    std::int64_t sum = 0;
    for (int h = 0; h < ledger_->heads; ++h) sum += entries(layer, h, born, at_row);
    return sum;
  }

  // A block counts from the birth of its first token until its last one is gone.
  bool block_alive(int layer, int head, RowIndex first, RowIndex size, RowIndex born,
                   RowIndex at_row) const {
    bool alive = false;
    for (RowIndex t = first; t < std::min(first + size, ledger_->plan.tokens); ++t) {
      const std::size_t i = ledger_->offset(layer, head) + at(t);
      alive = alive || (first < born && gone_[i] > at_row);
    }
    return alive;
  }

  // Tokens come one by one; at the end of a pass blocks leave until less than one is beyond the
  // limit, which takes the longest head and is three blocks at least.
  std::int64_t openvino_blocks(int layer, std::int64_t size, RowIndex born, RowIndex at_row) const {
    std::int64_t held = 0;
    for (RowIndex row = 0; row < born; ++row) {
      held += on_device(layer, 0, row, row + 1, row) ? 1 : 0;
      const RowIndex next = row + 1;
      const auto& ends = ledger_->plan.ends;
      if (next > at_row || std::find(ends.begin(), ends.end(), next) == ends.end()) continue;
      std::int64_t longest = 0;
      for (int h = 0; h < ledger_->heads; ++h)
        longest = std::max(longest, entries(layer, h, next, next));
      held = std::max(held, longest);
      std::int64_t limit = 3 * size;
      while (limit < longest) limit += size;
      while (held >= limit + size) held -= size;
    }
    return (held + size - 1) / size;
  }

  std::int64_t kv(const std::string& name, int layer, RowIndex born, RowIndex at_row) const {
    const Layout layout = parse_layout(name);
    const std::int64_t entry = ledger_->representations[0].device_bytes;
    const std::int64_t size = layout.block_size;
    const int heads = ledger_->heads;
    std::int64_t sum = 0;
    std::int64_t longest = 0;
    std::int64_t most = 0;
    std::int64_t compact = 0;
    for (int h = 0; h < heads; ++h) {
      sum += bytes(layer, h, born, at_row);
      longest = std::max(longest, bytes(layer, h, born, at_row));
      const std::int64_t n = entries(layer, h, born, at_row);
      most = std::max(most, n);
      compact += (n + size - 1) / size;
    }
    switch (layout.kind) {
      case Layout::Kind::ideal:
        return sum;
      case Layout::Kind::query_head:
        return sum * ledger_->query_heads / heads;
      case Layout::Kind::padded:
        return heads * longest;
      case Layout::Kind::masked:
        return born * heads * entry;
      case Layout::Kind::openvino:
        return heads * entry * size * openvino_blocks(layer, size, born, at_row);
      case Layout::Kind::paged:
        break;
    }
    if (layout.compact) {
      return entry * size * (layout.per_layer ? heads * ((most + size - 1) / size) : compact);
    }
    std::int64_t blocks = 0;
    for (RowIndex first = 0; first < ledger_->plan.tokens; first += size) {
      int alive = 0;
      for (int h = 0; h < heads; ++h)
        alive += block_alive(layer, h, first, size, born, at_row) ? 1 : 0;
      blocks += layout.per_layer && alive > 0 ? heads : alive;
    }
    return blocks * size * entry;
  }

  PeakBytes peak(const std::string& layout, bool layerwise) const {
    PeakBytes best;
    bool first = true;
    for (std::size_t i = 0; i < ledger_->plan.ends.size(); ++i) {
      const Pass pass = pass_at(ledger_->plan, i);
      const bool prefill = pass.end <= ledger_->plan.prompt;
      PeakBytes here;
      if (layerwise && prefill) {
        here = layerwise_peak(layout, pass, 0, ledger_->layers);
      } else {
        for (int l = 0; l < ledger_->layers; ++l) {
          here.kv += kv(layout, l, pass.end, pass.end - 1);
          here.overhead += ledger_->charge.entry * layer_entries(l, pass.end, pass.end - 1);
        }
      }
      here.overhead += ledger_->charge.once;
      here.total = here.kv + here.overhead;
      best.prefill = std::max(best.prefill, prefill ? here.total : 0);
      best.decode = std::max(best.decode, prefill ? 0 : here.total);
      if (first || here.total > best.total) {
        best.total = here.total;
        best.kv = here.kv;
        best.overhead = here.overhead;
        best.row = pass.end - 1;
      }
      first = false;
    }
    return best;
  }

  // The layerwise formula of metrics.h over the layers [from, to), without Charge::once.
  PeakBytes layerwise_peak(const std::string& layout, const Pass& pass, int from, int to) const {
    const bool last = pass.end == ledger_->plan.tokens;
    const RowIndex after = last ? pass.end - 1 : pass.end;
    PeakBytes best;
    for (int l = from; l < to; ++l) {
      PeakBytes here;
      for (int i = from; i < to; ++i) {
        const RowIndex born = i > l ? pass.begin : pass.end;
        const RowIndex at_row = i > l ? pass.begin : i == l ? pass.end - 1 : after;
        if (born > 0) {
          here.kv += kv(layout, i, born, at_row);
          here.overhead += ledger_->charge.entry * layer_entries(i, born, at_row);
        }
      }
      const Layout parsed = parse_layout(layout);
      const bool moves = parsed.kind != Layout::Kind::masked &&
                         parsed.kind != Layout::Kind::openvino &&
                         (parsed.kind != Layout::Kind::paged || parsed.compact);
      if (moves && !last && evicts(l, pass)) here.kv += kv(layout, l, pass.end, pass.end);
      here.total = here.kv + here.overhead;
      if (l == from || here.total > best.total) best = here;
    }
    return best;
  }

  bool evicts(int layer, const Pass& pass) const {
    for (int h = 0; h < ledger_->heads; ++h) {
      for (RowIndex t = 0; t < pass.end; ++t) {
        if (on_device(layer, h, t, pass.end, pass.end - 1) &&
            !on_device(layer, h, t, pass.end, pass.end)) {
          return true;
        }
      }
    }
    return false;
  }

 private:
  const Ledger* ledger_;
  std::vector<RowIndex> gone_;
};

std::int64_t sum(const Counts& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}
std::int64_t most(const Counts& values) { return *std::max_element(values.begin(), values.end()); }
double ratio(std::int64_t part, std::int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

// Every row, by counting.
struct PlainRows {
  Counts resident, bytes, overhead, host_bytes, active;
  std::int64_t host_rows = 0, bytes_read = 0;
};

PlainRows count_rows(const Ledger& ledger, const Plain& plain, const std::string& layout) {
  PlainRows out;
  for (RowIndex row = 0; row < ledger.plan.tokens; ++row) {
    std::int64_t row_entries = 0, row_kv = 0, row_host = 0, row_active = 0;
    for (int l = 0; l < ledger.layers; ++l) {
      row_kv += plain.kv(layout, l, row + 1, row);
      row_entries += plain.layer_entries(l, row + 1, row);
      for (int h = 0; h < ledger.heads; ++h) {
        for (RowIndex t = 0; t <= row; ++t) {
          const Representation* r = plain.held(l, h, t, row + 1, row);
          if (r == nullptr) continue;
          row_host += r->host_bytes;
          if (r->device_bytes == 0) ++out.host_rows;
          const RowIndex window = ledger.sliding_window.empty() ? 0 : ledger.sliding_window[at(l)];
          if (r->device_bytes > 0 && (window == 0 || row - window < t)) {
            ++row_active;
            if (ledger.selected.empty()) out.bytes_read += r->device_bytes;
          }
        }
      }
    }
    if (!ledger.selected.empty()) {
      row_active = ledger.selected[at(row)];
      out.bytes_read += row_active * ledger.representations[0].device_bytes;
    }
    out.resident.push_back(row_entries);
    out.overhead.push_back(ledger.charge.entry * row_entries + ledger.charge.once);
    out.bytes.push_back(row_kv + out.overhead.back());
    out.host_bytes.push_back(row_host);
    out.active.push_back(row_active);
  }
  return out;
}

void check_rows(const Ledger& ledger, const Metrics& metrics, const PlainRows& rows) {
  const RowIndex tokens = ledger.plan.tokens;
  CHECK(metrics.timeline.resident_entries == rows.resident);
  CHECK(metrics.timeline.resident_bytes == rows.bytes);
  CHECK(metrics.timeline.overhead_bytes == rows.overhead);
  CHECK(metrics.timeline.host_bytes == rows.host_bytes);
  CHECK(metrics.timeline.active_entries == rows.active);
  CHECK(metrics.entry_rows == sum(rows.resident));
  const std::int64_t all_heads = std::int64_t{ledger.layers} * ledger.heads;
  CHECK(metrics.full_entry_rows == all_heads * tokens * (tokens + 1) / 2);
  CHECK(metrics.footprint == ratio(sum(rows.resident), metrics.full_entry_rows));
  CHECK(metrics.host_footprint == ratio(rows.host_rows, metrics.full_entry_rows));
  CHECK(metrics.peak_kv == ratio(most(rows.resident), all_heads * tokens));
  CHECK(metrics.byte_rows == sum(rows.bytes));
  CHECK(metrics.host_peak_bytes == most(rows.host_bytes));
  CHECK(metrics.entries_read == sum(rows.active));
  CHECK(metrics.bytes_read == rows.bytes_read);
}

// Each head and each layer alone.
void check_layers(const Ledger& ledger, const Metrics& metrics, const Plain& plain,
                  const std::string& layout, bool layerwise) {
  const RowIndex tokens = ledger.plan.tokens;
  REQUIRE(metrics.per_layer.size() == at(ledger.layers));
  REQUIRE(metrics.head_footprint.size() == at(ledger.layers));
  for (int l = 0; l < ledger.layers; ++l) {
    Counts layer(at(tokens), 0);
    std::int64_t peak = 0;
    for (int h = 0; h < ledger.heads; ++h) {
      Counts head;
      for (RowIndex row = 0; row < tokens; ++row) {
        head.push_back(plain.entries(l, h, row + 1, row));
        layer[at(row)] += head.back();
      }
      CHECK(metrics.head_footprint[at(l)][at(h)] == ratio(sum(head), tokens * (tokens + 1) / 2));
      CHECK(metrics.head_peak_kv[at(l)][at(h)] == ratio(most(head), tokens));
    }
    for (std::size_t i = 0; i < ledger.plan.ends.size(); ++i) {
      const Pass pass = pass_at(ledger.plan, i);
      const std::int64_t end = plain.kv(layout, l, pass.end, pass.end - 1) +
                               ledger.charge.entry * layer[at(pass.end - 1)];
      const bool stepwise = layerwise && pass.end <= ledger.plan.prompt;
      peak = std::max(peak, stepwise ? plain.layerwise_peak(layout, pass, l, l + 1).total : end);
    }
    CHECK(metrics.per_layer[at(l)].footprint ==
          ratio(sum(layer), ledger.heads * tokens * (tokens + 1) / 2));
    CHECK(metrics.per_layer[at(l)].peak_kv == ratio(most(layer), ledger.heads * tokens));
    CHECK(metrics.per_layer[at(l)].peak_bytes == peak);
  }
}

void check_against_plain(const Ledger& ledger, const std::string& layout, bool layerwise) {
  const Metrics metrics = compute_metrics(ledger, accounting(layout, layerwise));
  const Plain plain(ledger);
  check_rows(ledger, metrics, count_rows(ledger, plain, layout));
  check_layers(ledger, metrics, plain, layout, layerwise);
  CHECK(metrics.peak_bytes == plain.peak(layout, layerwise));
  std::map<std::string, PeakBytes> others;
  for (const std::string& name : standard_layouts()) {
    if (name != layout) others[name] = plain.peak(name, layerwise);
  }
  CHECK(metrics.layouts == others);
}

// Resident entries at the end of each chunk, and in the last row if anything is generated.
Counts peak_points(const Ledger& ledger, const Metrics& metrics) {
  Counts points;
  for (const RowIndex end : ledger.plan.ends) {
    if (end <= ledger.plan.prompt || end == ledger.plan.tokens) {
      points.push_back(metrics.timeline.resident_entries[at(end - 1)]);
    }
  }
  return points;
}

}  // namespace

TEST_CASE("lifetimes give footprint, peak and timeline", "[metrics]") {
  Ledger ledger = drawn(4, 0,
                        {{{"000000",  // a prompt of four, of which two die
                           ".000..",  //
                           "..00..",  //
                           "...000",  //
                           "....00",  //
                           ".....0"}}});
  ledger.charge = {1, 5};
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{1, 2, 3, 4, 3, 4});
  CHECK(metrics.timeline.overhead_bytes == Counts{6, 7, 8, 9, 8, 9});
  CHECK(metrics.timeline.resident_bytes == Counts{16, 27, 38, 49, 38, 49});
  CHECK(metrics.timeline.active_entries == metrics.timeline.resident_entries);
  CHECK(metrics.timeline.host_bytes == Counts(6, 0));
  CHECK(metrics.entry_rows == 17);
  CHECK(metrics.full_entry_rows == 21);
  CHECK(metrics.footprint == 17.0 / 21.0);
  CHECK(metrics.peak_kv == 4.0 / 6.0);
  CHECK(metrics.byte_rows == 16 + 27 + 38 + 49 + 38 + 49);
  CHECK(metrics.entries_read == 17);
  CHECK(metrics.bytes_read == 170);
  // Rows 3 and 5 hold as much: the first counts.
  CHECK(metrics.peak_bytes == PeakBytes{49, 40, 9, 49, 49, 3});
  CHECK(metrics.per_layer[0].peak_bytes == 44);
}

// ---- The paper's vectors (arXiv 2506.17121) -----------------------------------------------------

TEST_CASE("a streaming head has the paper's entry-rows and peak points", "[metrics][paper]") {
  const auto [n, m, chunk, sinks, window, entry_rows, points, full] =
      GENERATE(table<int, int, int, int, int, std::int64_t, Counts, std::int64_t>({
          {8, 3, 4, 1, 2, 44, {4, 7, 4}, 66},
          {10, 4, 4, 2, 3, 73, {4, 8, 7, 6}, 105},
          {5, 3, 5, 1, 2, 27, {5, 4}, 36},
          {4, 4, 2, 0, 3, 26, {2, 4, 4}, 36},
      }));
  Ledger ledger = paper_ledger(n, m, chunk);
  add_head(ledger, streaming_deaths(ledger.plan.ends, sinks, window));
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.entry_rows == entry_rows);
  CHECK(metrics.full_entry_rows == full);
  CHECK(peak_points(ledger, metrics) == points);
  CHECK(metrics.peak_bytes.total == *std::max_element(points.begin(), points.end()));
}

TEST_CASE("an evicting head has the paper's entry-rows and peak points", "[metrics][paper]") {
  const auto [n, m, chunk, s, w, entry_rows, points, full] =
      GENERATE(table<int, int, int, double, int, std::int64_t, Counts, std::int64_t>({
          {8, 3, 4, .5, 0, 46, {4, 6, 7}, 66},
          {8, 3, 4, .5, 1, 56, {4, 7, 9}, 66},
          {10, 4, 4, .5, 1, 89, {4, 7, 8, 12}, 105},
          {12, 2, 5, .9, 2, 66, {5, 7, 6, 8}, 105},
      }));
  Ledger ledger = paper_ledger(n, m, chunk);
  add_head(ledger, evicting_deaths(ledger.plan.ends, n, s, w));
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.entry_rows == entry_rows);
  CHECK(metrics.full_entry_rows == full);
  CHECK(peak_points(ledger, metrics) == points);
  CHECK(metrics.peak_bytes.total == *std::max_element(points.begin(), points.end()));
}

TEST_CASE("long mixes of streaming and evicting heads have the paper's footprint and peak",
          "[metrics][paper]") {
  constexpr double kNone = -1;
  const auto [chunk, sinks, window, s, w, streaming, heads, footprint, peak] =
      GENERATE_COPY(table<int, int, int, double, int, int, int, double, double>({
          {32768, 128, 1024, 0, 0, 7, 10, 0.4838851526, 0.4806829268},
          {8192, 128, 1024, 0, 0, 7, 10, 0.3551947355, 0.3495609756},
          {128, 128, 1024, 0, 0, 7, 10, 0.3129202213, 0.3065365854},
          {32768, 0, 0, .7, 64, 0, 1, 0.4761199954, 0.4759908537},
          {131072, 0, 0, .7, 64, 0, 1, 0.9986364470, 0.9990243902},
          {32768, 0, 0, .7, 0, 0, 1, 0.4746542124, kNone},
          {131072, 0, 0, .7, 0, 0, 1, 0.9986354952, kNone},
      }));
  Ledger ledger = paper_ledger(131072, 128, chunk);
  for (int h = 0; h < heads; ++h) {
    add_head(ledger, h < streaming ? streaming_deaths(ledger.plan.ends, sinks, window)
                                   : evicting_deaths(ledger.plan.ends, 131072, s, w));
  }
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.footprint == Approx(footprint).epsilon(0).margin(5.1e-11));
  if (peak != kNone) CHECK(metrics.peak_kv == Approx(peak).epsilon(0).margin(5.1e-11));
}

// ---- Random ledgers -----------------------------------------------------------------------------

TEST_CASE("metrics equal plain loops over all entries of every row", "[metrics][random]") {
  const int seed = GENERATE(take(250, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  Ledger ledger = random_ledger(random, 24);
  if (random.chance(60)) add_changes(random, ledger);
  if (random.chance(40)) add_windows(random, ledger);
  if (random.chance(20)) {
    for (RowIndex row = 0; row < ledger.plan.tokens; ++row) {
      ledger.selected.push_back(random.between(0, row + 1));
    }
  }
  std::vector<std::string> layouts = standard_layouts();
  for (const char* block : {"paged1", "paged3", "paged4"}) {
    for (const char* rest :
         {"_per_head", "_per_layer", "_per_head_compact", "_per_layer_compact"}) {
      layouts.push_back(std::string(block) + rest);
    }
  }
  for (const char* name : {"openvino1", "openvino2", "openvino3"}) layouts.emplace_back(name);
  const std::string layout =
      layouts[at(random.between(0, static_cast<std::int64_t>(layouts.size()) - 1))];
  const bool layerwise = random.chance(50);
  INFO("seed " << seed << ", layout " << layout << (layerwise ? ", layerwise" : ""));
  check_against_plain(ledger, layout, layerwise);
}

TEST_CASE("metrics of given deaths equal the twin's replay", "[metrics][random]") {
  const int seed = GENERATE(take(100, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  const Ledger drawn_ledger = random_ledger(random, 24);
  Ledger ledger = drawn_ledger;
  ledger.charge = {};
  ledger.representations = {{"entry", 8, 0}};
  if (random.chance(50)) add_windows(random, ledger);

  kvspan::twin::Trace trace;
  kvspan::twin::Spec spec;
  kvspan::twin::Plan plan;
  trace.tokens = static_cast<int>(ledger.plan.tokens);
  trace.prompt_tokens = static_cast<int>(ledger.plan.prompt);
  trace.query_heads = ledger.query_heads;
  trace.kv_heads = ledger.heads;
  trace.head_dim = trace.v_head_dim = 2;
  trace.model_layers = ledger.layers;
  const std::size_t vectors = at(ledger.plan.tokens) * 2;
  for (int l = 0; l < ledger.layers; ++l) {
    kvspan::twin::Layer& layer = trace.layers.emplace_back();
    layer.model_layer = l;
    layer.q.assign(vectors * at(ledger.query_heads), 1.0);
    layer.k.assign(vectors * at(ledger.heads), 1.0);
    layer.v.assign(vectors * at(ledger.heads), 1.0);
    if (!ledger.sliding_window.empty()) {
      layer.sliding_window = static_cast<int>(ledger.sliding_window[at(l)]);
    }
  }
  // The twin takes a chunk size: the first pass of the plan tells it.
  plan.evict_point = static_cast<int>(ledger.plan.evict_point);
  plan.chunk = static_cast<int>(ledger.plan.ends[0]);
  spec.name = "deaths";
  spec.deaths.assign(ledger.death.begin(), ledger.death.end());
  INFO("seed " << seed);
  const kvspan::twin::Result twin = kvspan::twin::simulate(trace, spec, plan);

  const Metrics whole = compute_metrics(ledger, kWhole);
  CHECK(whole.entry_rows == twin.entry_rows);
  CHECK(whole.full_entry_rows == twin.full_entry_rows);
  CHECK(whole.footprint == Approx(twin.footprint).epsilon(1e-14));
  CHECK(whole.peak_kv == Approx(twin.peak_kv).epsilon(1e-14));
  CHECK(whole.entries_read == twin.entries_read);
  CHECK(whole.byte_rows == twin.byte_rows);
  CHECK(whole.peak_bytes == PeakBytes{twin.peak_total_whole, twin.peak_kv_bytes, twin.peak_overhead,
                                      twin.prefill_whole, twin.decode_whole, twin.peak_row});
  CHECK(compute_metrics(ledger, kLayerwise).peak_bytes.total == twin.peak_total_layerwise);
}

TEST_CASE("lifetimes times bytes add up to the byte-rows without overhead", "[metrics][random]") {
  const int seed = GENERATE(take(50, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  const Ledger ledger = random_ledger(random, 200);
  std::int64_t lengths = 0;
  for (std::size_t i = 0; i < ledger.death.size(); ++i) {
    lengths += ledger.death[i] - static_cast<std::int64_t>(i) % ledger.plan.tokens;
  }
  const Metrics metrics = compute_metrics(ledger, kWhole);
  const Counts& overhead = metrics.timeline.overhead_bytes;
  INFO("seed " << seed);
  CHECK(lengths == metrics.entry_rows);
  CHECK(lengths * ledger.representations[0].device_bytes ==
        metrics.byte_rows - std::accumulate(overhead.begin(), overhead.end(), std::int64_t{0}));
}
