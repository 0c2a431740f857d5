// SPDX-License-Identifier: Apache-2.0
// Metrics of hand-made ledgers, of the paper's vectors, and of random ledgers against plain loops
// over all entries of every row, the twin, and graph theory.
#include "sim/ledger/metrics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <boost/graph/adjacency_matrix.hpp>
#include <boost/graph/bron_kerbosch_all_cliques.hpp>
#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "tests/twin/twin.h"

namespace {

using kvspan::Accounting;
using kvspan::Change;
using kvspan::compute_metrics;
using kvspan::Layout;
using kvspan::Ledger;
using kvspan::make_passes;
using kvspan::Metrics;
using kvspan::parse_layout;
using kvspan::Pass;
using kvspan::pass_at;
using kvspan::PeakBytes;
using kvspan::Representation;
using kvspan::RowIndex;
using kvspan::standard_layouts;
using kvspan::TokenIndex;

using Counts = std::vector<std::int64_t>;

std::size_t at(std::int64_t value) { return static_cast<std::size_t>(value); }
Accounting accounting(const std::string& layout, bool layerwise = false) {
  return {2, layerwise, layout};
}
const Accounting kWhole = accounting("ideal");
const Accounting kLayerwise = accounting("ideal", true);

// ---- Ledgers from pictures ----------------------------------------------------------------------

// One line a token, one column a row: '.' not there, a digit is the representation it is held in.
using Picture = std::vector<std::string>;

// pictures [layers][heads]; entries are 10 bytes in representation 0.
Ledger drawn(RowIndex prompt, RowIndex chunk, const std::vector<std::vector<Picture>>& pictures) {
  const RowIndex tokens = static_cast<RowIndex>(pictures[0][0].size());
  Ledger ledger;
  ledger.plan = make_passes(tokens, prompt, prompt, chunk);
  ledger.layers = ledger.model_layers = static_cast<int>(pictures.size());
  ledger.heads = ledger.query_heads = static_cast<int>(pictures[0].size());
  ledger.representations = {
      {"entry", 10, 0}, {"quantised", 4, 0}, {"host", 0, 10}, {"copy", 10, 10}};
  for (const std::vector<Picture>& layer : pictures) {
    std::vector<Change>& changes = ledger.changes.emplace_back();
    for (std::size_t head = 0; head < layer.size(); ++head) {
      for (std::size_t token = 0; token < layer[head].size(); ++token) {
        const std::string& line = layer[head][token];
        REQUIRE(line.find_first_not_of('.') == token);
        REQUIRE(line.size() == layer[head].size());
        const std::size_t last = line.find_last_not_of('.');
        ledger.death.push_back(static_cast<std::uint32_t>(last + 1));
        for (std::size_t row = token + 1; row <= last; ++row) {
          if (line[row] == line[row - 1]) continue;
          changes.push_back({static_cast<RowIndex>(row), static_cast<int>(head),
                             static_cast<TokenIndex>(token), line[row] - '0'});
        }
      }
    }
    std::stable_sort(changes.begin(), changes.end(),
                     [](const Change& a, const Change& b) { return a.row < b.row; });
  }
  return ledger;
}

// Nothing is ever evicted.
Picture full_head(std::size_t tokens) {
  Picture picture;
  for (std::size_t t = 0; t < tokens; ++t) {
    picture.push_back(std::string(t, '.') + std::string(tokens - t, '0'));
  }
  return picture;
}

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

// ---- Random ledgers -----------------------------------------------------------------------------

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool chance(int percent) { return between(1, 100) <= percent; }

 private:
  std::mt19937 engine_;
};

// Deaths at ends of passes, as an engine decides them.
Ledger random_ledger(Random& random, RowIndex most_tokens) {
  Ledger ledger;
  const RowIndex tokens = random.between(1, most_tokens);
  const RowIndex prompt = random.between(1, tokens);
  const RowIndex evict_at = random.chance(30) ? random.between(1, prompt) : prompt;
  ledger.plan = make_passes(tokens, prompt, evict_at, random.between(0, 6));
  ledger.layers = ledger.model_layers = static_cast<int>(random.between(1, 3));
  ledger.heads = static_cast<int>(random.between(1, 3));
  ledger.query_heads = ledger.heads * static_cast<int>(random.between(1, 3));
  ledger.representations = {{"entry", 2 * random.between(1, 20), 0}};
  ledger.charge = {random.between(0, 3), random.chance(50) ? 0 : random.between(1, 40)};
  const int eviction = static_cast<int>(random.between(0, 100));
  for (int head = 0; head < ledger.layers * ledger.heads; ++head) {
    for (RowIndex token = 0; token < tokens; ++token) {
      std::vector<RowIndex> choices;
      for (const RowIndex end : ledger.plan.ends) {
        if (end > token) choices.push_back(end);
      }
      const std::int64_t last = static_cast<std::int64_t>(choices.size()) - 1;
      // Most deaths soon after birth: whole blocks die, and heads differ in length.
      const std::int64_t choice =
          random.between(0, random.chance(60) ? std::min<std::int64_t>(2, last) : last);
      ledger.death.push_back(
          static_cast<std::uint32_t>(random.chance(eviction) ? choices[at(choice)] : tokens));
    }
  }
  return ledger;
}

void add_windows(Random& random, Ledger& ledger) {
  for (int l = 0; l < ledger.layers; ++l) {
    ledger.sliding_window.push_back(random.chance(30) ? 0 : random.between(1, 8));
  }
}

// Offloads, copies back and quantises at ends of passes, dead and unborn entries included.
void add_changes(Random& random, Ledger& ledger) {
  const std::int64_t entry = ledger.representations[0].device_bytes;
  ledger.representations.push_back({"quantised", entry / 2, 0});
  ledger.representations.push_back({"host", 0, entry});
  ledger.representations.push_back({"copy", entry, entry});
  if (random.chance(10)) std::swap(ledger.representations[0], ledger.representations[2]);
  for (int l = 0; l < ledger.layers; ++l) {
    std::vector<Change>& changes = ledger.changes.emplace_back();
    for (const RowIndex end : ledger.plan.ends) {
      std::set<std::pair<int, RowIndex>> changed;
      for (std::int64_t i = random.between(0, 4); i > 0; --i) {
        const int head = static_cast<int>(random.between(0, ledger.heads - 1));
        const RowIndex token = random.between(0, end - 1);
        if (!changed.insert({head, token}).second) continue;
        changes.push_back(
            {end, head, static_cast<TokenIndex>(token), static_cast<int>(random.between(0, 3))});
      }
    }
  }
}

void check_against_plain(const Ledger& ledger, const std::string& layout, bool layerwise) {
  const Metrics metrics = compute_metrics(ledger, accounting(layout, layerwise));
  const Plain plain(ledger);
  const RowIndex tokens = ledger.plan.tokens;
  Counts resident, kv, overhead, host_bytes, active;
  std::int64_t host_rows = 0;
  std::int64_t bytes_read = 0;
  for (RowIndex row = 0; row < tokens; ++row) {
    std::int64_t row_entries = 0, row_kv = 0, row_host = 0, row_active = 0;
    for (int l = 0; l < ledger.layers; ++l) {
      row_kv += plain.kv(layout, l, row + 1, row);
      row_entries += plain.layer_entries(l, row + 1, row);
      for (int h = 0; h < ledger.heads; ++h) {
        for (RowIndex t = 0; t <= row; ++t) {
          const Representation* r = plain.held(l, h, t, row + 1, row);
          if (r == nullptr) continue;
          row_host += r->host_bytes;
          if (r->device_bytes == 0) ++host_rows;
          const RowIndex window = ledger.sliding_window.empty() ? 0 : ledger.sliding_window[at(l)];
          if (r->device_bytes > 0 && (window == 0 || row - window < t)) {
            ++row_active;
            if (ledger.selected.empty()) bytes_read += r->device_bytes;
          }
        }
      }
    }
    if (!ledger.selected.empty()) {
      row_active = ledger.selected[at(row)];
      bytes_read += row_active * ledger.representations[0].device_bytes;
    }
    resident.push_back(row_entries);
    overhead.push_back(ledger.charge.entry * row_entries + ledger.charge.once);
    kv.push_back(row_kv + overhead.back());
    host_bytes.push_back(row_host);
    active.push_back(row_active);
  }
  const auto sum = [](const Counts& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
  };
  const auto most = [](const Counts& values) {
    return *std::max_element(values.begin(), values.end());
  };

  CHECK(metrics.timeline.resident_entries == resident);
  CHECK(metrics.timeline.resident_bytes == kv);
  CHECK(metrics.timeline.overhead_bytes == overhead);
  CHECK(metrics.timeline.host_bytes == host_bytes);
  CHECK(metrics.timeline.active_entries == active);
  CHECK(metrics.entry_rows == sum(resident));
  const std::int64_t all_heads = std::int64_t{ledger.layers} * ledger.heads;
  CHECK(metrics.full_entry_rows == all_heads * tokens * (tokens + 1) / 2);
  const auto ratio = [](std::int64_t part, std::int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  CHECK(metrics.footprint == ratio(sum(resident), metrics.full_entry_rows));
  CHECK(metrics.host_footprint == ratio(host_rows, metrics.full_entry_rows));
  CHECK(metrics.peak_kv == ratio(most(resident), all_heads * tokens));
  CHECK(metrics.byte_rows == sum(kv));
  CHECK(metrics.host_peak_bytes == most(host_bytes));
  CHECK(metrics.entries_read == sum(active));
  CHECK(metrics.bytes_read == bytes_read);

  // Each head and each layer alone.
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

  CHECK(metrics.peak_bytes == plain.peak(layout, layerwise));
  std::map<std::string, PeakBytes> others;
  for (const std::string& name : standard_layouts()) {
    if (name != layout) others[name] = plain.peak(name, layerwise);
  }
  CHECK(metrics.layouts == others);
}

// ---- The paper's heads --------------------------------------------------------------------------

// A streaming head: sinks and a recent window stay after every pass.
std::vector<std::uint32_t> streaming_deaths(const std::vector<RowIndex>& ends, RowIndex sinks,
                                            RowIndex window) {
  const RowIndex tokens = ends.back();
  std::vector<std::uint32_t> deaths(at(tokens), static_cast<std::uint32_t>(tokens));
  for (RowIndex token = sinks; token < tokens; ++token) {
    // The first end of a pass that leaves `window` newer tokens behind it.
    const auto end = std::lower_bound(ends.begin(), ends.end(), token + window + 1);
    if (end != ends.end()) deaths[at(token)] = static_cast<std::uint32_t>(*end);
  }
  return deaths;
}

// Of each chunk of the prompt the newest (1-s) c + w stay, for good.
std::vector<std::uint32_t> evicting_deaths(const std::vector<RowIndex>& ends, RowIndex prompt,
                                           double s, RowIndex w) {
  const RowIndex tokens = ends.back();
  std::vector<std::uint32_t> deaths(at(tokens), static_cast<std::uint32_t>(tokens));
  RowIndex begin = 0;
  for (const RowIndex end : ends) {
    if (end > prompt) break;
    const RowIndex c = end - begin;
    const RowIndex share =
        static_cast<RowIndex>(std::nearbyint((1.0 - s) * static_cast<double>(c)));
    for (RowIndex token = begin; token < end - std::min(share + w, c); ++token) {
      deaths[at(token)] = static_cast<std::uint32_t>(end);
    }
    begin = end;
  }
  return deaths;
}

Ledger paper_ledger(RowIndex n, RowIndex m, RowIndex chunk) {
  Ledger ledger;
  ledger.plan = make_passes(n + m, n, n, chunk);
  ledger.layers = ledger.model_layers = 1;
  ledger.representations = {{"entry", 1, 0}};
  return ledger;
}
void add_head(Ledger& ledger, const std::vector<std::uint32_t>& deaths) {
  ledger.death.insert(ledger.death.end(), deaths.begin(), deaths.end());
  ledger.query_heads = ++ledger.heads;
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

// ---- By hand ------------------------------------------------------------------------------------

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

TEST_CASE("an entry that dies at the end of a pass is there in every row of it", "[metrics]") {
  const Ledger ledger = drawn(4, 2,
                              {{{"00..",  //
                                 ".000",  //
                                 "..00",  //
                                 "...0"}}});
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{1, 2, 2, 3});
  CHECK(metrics.peak_bytes == PeakBytes{30, 30, 0, 30, 0, 3});  // no decode row
}

TEST_CASE("a peak is one instant and not a sum of two maxima", "[metrics]") {
  Ledger ledger = drawn(3, 0,
                        {{{"00011",  // three entries are quantised at row 3
                           ".0011",  //
                           "..011",  //
                           "...00",  //
                           "....0"}}});
  ledger.charge = {3, 0};
  const Metrics metrics = compute_metrics(ledger, kWhole);
  // row             0   1   2   3   4
  // kv             10  20  30  22  32
  // overhead        3   6   9  12  15
  CHECK(metrics.timeline.resident_bytes == Counts{13, 26, 39, 34, 47});
  CHECK(metrics.peak_bytes == PeakBytes{47, 32, 15, 39, 47, 4});

  ledger.representations[1].device_bytes = 1;
  // kv             10  20  30  13  23
  const Metrics smaller = compute_metrics(ledger, kWhole);
  CHECK(smaller.peak_bytes == PeakBytes{39, 30, 9, 39, 38, 2});  // overhead peaks in row 4
}

TEST_CASE("offloaded entries leave the device footprint for one of their own", "[metrics]") {
  const Ledger ledger = drawn(4, 2,
                              {{{"002222",  // to the host and stays there
                                 ".0023.",  // comes back as a copy, then dies
                                 "..0000",  //
                                 "...000",  //
                                 "....00",  //
                                 ".....0"}}});
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{1, 2, 2, 2, 4, 4});
  CHECK(metrics.timeline.host_bytes == Counts{0, 0, 10, 20, 20, 10});
  CHECK(metrics.host_peak_bytes == 20);
  CHECK(metrics.host_footprint == 5.0 / 21.0);  // the copy is a device entry
  CHECK(metrics.footprint == 15.0 / 21.0);
  CHECK(metrics.bytes_read == 150);
}

TEST_CASE("a change of a dead entry counts nothing", "[metrics]") {
  Ledger ledger = drawn(2, 0,
                        {{{"00..",  //
                           ".000",  //
                           "..00",  //
                           "...0"}}});
  const Metrics before = compute_metrics(ledger, kWhole);
  ledger.changes[0] = {{2, 0, 0, 2}, {3, 0, 0, 1}};
  const Metrics after = compute_metrics(ledger, kWhole);
  CHECK(after.timeline.resident_bytes == before.timeline.resident_bytes);
  CHECK(after.timeline.host_bytes == Counts(4, 0));
}

TEST_CASE("layerwise prefill adds a copy of the survivors and spares what came before",
          "[metrics]") {
  // Layer 0 keeps one entry after each chunk of two, layer 1 keeps all.
  Ledger ledger = drawn(4, 2,
                        {{{"00....",  //
                           ".000..",  //
                           "..00..",  //
                           "...000",  //
                           "....00",  //
                           ".....0"}},
                         {full_head(6)}});
  ledger.charge = {1, 0};
  const Metrics whole = compute_metrics(ledger, kWhole);
  CHECK(whole.timeline.resident_entries == Counts{2, 4, 5, 7, 7, 9});
  CHECK(whole.peak_bytes == PeakBytes{99, 90, 9, 77, 99, 5});

  // Chunk 2, entries:   l=0: 1 + 2, a copy of 1, past_1 = 2   kv 60, overhead 5
  //                     l=1: after_0 = 1, 2 + 2, no copy      kv 50, overhead 5
  const Metrics layerwise = compute_metrics(ledger, kLayerwise);
  CHECK(layerwise.peak_bytes == PeakBytes{99, 90, 9, 65, 99, 5});
  CHECK(layerwise.per_layer[0].peak_bytes == 10 * (1 + 2 + 1) + 3);
  CHECK(layerwise.per_layer[1].peak_bytes == 66);
  CHECK(layerwise.timeline.resident_bytes == whole.timeline.resident_bytes);

  // Without decode the prefill's peak is the whole peak, at the last row of its pass. Nothing is
  // evicted after the last pass, so that nothing is copied either.
  Ledger prompt_only = drawn(4, 2,
                             {{{"00..",  //
                                ".000",  //
                                "..00",  //
                                "...0"}},
                              {full_head(4)}});
  // Chunk 1:  l=0: 2, a copy of 1;   l=1: after_0 = 1, 2      30 either way
  // Chunk 2:  l=0: 3, past_1 = 2     l=1: after_0 = 3, 4      70
  CHECK(compute_metrics(prompt_only, kLayerwise).peak_bytes == PeakBytes{70, 70, 0, 70, 0, 3});
}

TEST_CASE("the first of equal layers gives the parts of a layerwise peak", "[metrics]") {
  Ledger ledger = drawn(4, 2,
                        {{{"0000.",  //
                           ".000.",  //
                           "..00.",  //
                           "...00",  //
                           "....0"}},
                         {{"0000.",  //
                           ".0000",  //
                           "..000",  //
                           "...00",  //
                           "....0"}}});
  ledger.charge = {10, 0};
  // Chunk 2:  l=0: 2 + 2, a copy of 1, past_1 = 2      kv 70, overhead 60
  //           l=1: after_0 = 1, 2 + 2, a copy of 3     kv 80, overhead 50
  CHECK(compute_metrics(ledger, kLayerwise).peak_bytes == PeakBytes{130, 70, 60, 130, 120, 3});
}

TEST_CASE("an offload copies the survivors, also of entries that come back", "[metrics]") {
  const Ledger ledger = drawn(4, 3,
                              {{{"000233",  // leaves after the first chunk
                                 ".00000",  //
                                 "..0000",  //
                                 "...000",  //
                                 "....00",  //
                                 ".....0"}}});
  CHECK(ledger.plan.ends == std::vector<RowIndex>{3, 4, 5, 6});
  CHECK(compute_metrics(ledger, kLayerwise).peak_bytes.prefill == 30 + 20);
}

TEST_CASE("layouts that move nothing copy no survivors", "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0,
                              {{{"0000.",  //
                                 ".0000",  //
                                 "..000",  //
                                 "...00",  //
                                 "....0"}}});
  const auto prefill = [&](const std::string& layout) {
    return compute_metrics(ledger, accounting(layout, true)).peak_bytes.prefill;
  };
  CHECK(prefill("ideal") == 40 + 30);
  CHECK(prefill("padded") == 40 + 30);
  CHECK(prefill("paged2_per_head_compact") == 40 + 40);
  CHECK(prefill("paged2_per_head") == 40);
  CHECK(prefill("masked") == 40);
}

TEST_CASE("layouts are views on one ledger", "[metrics][layouts]") {
  // A prompt of five; head 0 keeps tokens 1 and 4, head 1 token 0. Blocks: {0 1} {2 3} {4 5} {6 7}.
  Ledger ledger = drawn(5, 0,
                        {{{"00000...",  //
                           ".0000000",  //
                           "..000...",  //
                           "...00...",  //
                           "....0000",  //
                           ".....000",  //
                           "......00",  //
                           ".......0"},
                          {"00000000",  //
                           ".0000...",  //
                           "..000...",  //
                           "...00...",  //
                           "....0...",  //
                           ".....0..",  //
                           "......00",  //
                           ".......0"}}});
  ledger.query_heads = 6;
  const auto kv = [&](const std::string& layout) {
    Counts entries = compute_metrics(ledger, accounting(layout)).timeline.resident_bytes;
    for (std::int64_t& bytes : entries) bytes /= 10;
    return entries;
  };
  // row                             0   1   2   3   4   5   6   7
  CHECK(kv("ideal") == Counts{2, 4, 6, 8, 10, 5, 6, 8});
  CHECK(kv("query_head") == Counts{6, 12, 18, 24, 30, 15, 18, 24});
  CHECK(kv("padded") == Counts{2, 4, 6, 8, 10, 6, 8, 10});
  // Head 1 loses block {4 5} at row 6 only: token 5 is in it.
  CHECK(kv("paged2_per_head") == Counts{4, 4, 8, 8, 12, 8, 10, 10});
  CHECK(kv("paged2_per_layer") == Counts{4, 4, 8, 8, 12, 8, 12, 12});
  CHECK(kv("paged2_per_head_compact") == Counts{4, 4, 8, 8, 12, 6, 6, 10});
  CHECK(kv("paged2_per_layer_compact") == Counts{4, 4, 8, 8, 12, 8, 8, 12});
  CHECK(kv("paged16_per_head") == Counts{32, 32, 32, 32, 32, 32, 32, 32});
  CHECK(kv("masked") == Counts{2, 4, 6, 8, 10, 12, 14, 16});
}

TEST_CASE("a block that fills without eviction peaks at the end of its pass",
          "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0, {{full_head(6)}});
  CHECK(compute_metrics(ledger, accounting("paged16_per_head")).peak_bytes ==
        PeakBytes{160, 160, 0, 160, 160, 3});
}

TEST_CASE("a block leaves the device with the last entry that is offloaded", "[metrics][layouts]") {
  const Ledger ledger = drawn(2, 0,
                              {{{"00222",  //
                                 ".0022",  //
                                 "..000",  //
                                 "...00",  //
                                 "....0"}}});
  CHECK(compute_metrics(ledger, accounting("paged2_per_head")).timeline.resident_bytes ==
        Counts{20, 20, 40, 20, 40});
}

TEST_CASE("metrics list every standard layout but the chosen one", "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0, {{full_head(6)}});
  std::vector<std::string> expected = standard_layouts();
  std::sort(expected.begin(), expected.end());
  const std::string chosen = GENERATE(as<std::string>{}, "ideal", "masked", "paged32_per_layer");
  std::vector<std::string> found;
  for (const auto& [name, peak] : compute_metrics(ledger, accounting(chosen)).layouts) {
    found.push_back(name);
  }
  std::erase(expected, chosen);
  CHECK(found == expected);
}

TEST_CASE("a model's sliding window bounds what is read and not what is resident", "[metrics]") {
  Ledger ledger = drawn(4, 0,
                        {{{"000000",  //
                           ".000..",  //
                           "..00..",  //
                           "...000",  //
                           "....00",  //
                           ".....0"}},
                         {full_head(6)}});
  ledger.sliding_window = {2, 0};  // layer 0: row i reads tokens i-1 and i
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{2, 4, 6, 8, 8, 10});
  CHECK(metrics.timeline.active_entries == Counts{2, 4, 5, 6, 7, 8});
  CHECK(metrics.entries_read == 32);
  CHECK(metrics.bytes_read == 320);
  CHECK(metrics.footprint == 38.0 / 42.0);
}

TEST_CASE("a selector's choice is what is read", "[metrics]") {
  Ledger ledger = drawn(2, 0, {{full_head(4)}});
  ledger.selected = {1, 2, 1, 1};
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.active_entries == Counts{1, 2, 1, 1});
  CHECK(metrics.entries_read == 5);
  CHECK(metrics.bytes_read == 50);
  CHECK(metrics.footprint == 1.0);
}

TEST_CASE("layout names are parsed and a wrong one names the nearest", "[metrics][layouts]") {
  for (const std::string& name : standard_layouts()) CHECK_NOTHROW(parse_layout(name));
  const Layout layout = parse_layout("paged32_per_layer_compact");
  CHECK(layout.kind == Layout::Kind::paged);
  CHECK(layout.block_size == 32);
  CHECK(layout.per_layer);
  CHECK(layout.compact);
  CHECK_FALSE(parse_layout("paged1_per_head").per_layer);

  CHECK_THROWS_WITH(parse_layout("paded"), Catch::Contains("did you mean 'padded'?"));
  const std::string wrong = GENERATE(
      as<std::string>{}, "", "Ideal", "paged", "paged_per_head", "paged0_per_head",
      "paged016_per_head", "paged-4_per_head", "paged16", "paged16_per_head_", "paged16_compact",
      "paged16_per_heads", "paged1048577_per_head", "paged99999999999999999999_per_head");
  INFO(wrong);
  CHECK_THROWS_AS(parse_layout(wrong), kvspan::ConfigError);
  const Ledger ledger = drawn(2, 0, {{full_head(4)}});
  CHECK_THROWS_AS(compute_metrics(ledger, accounting(wrong)), kvspan::ConfigError);
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
  Random random(static_cast<unsigned>(seed));
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
  const std::string layout =
      layouts[at(random.between(0, static_cast<std::int64_t>(layouts.size()) - 1))];
  const bool layerwise = random.chance(50);
  INFO("seed " << seed << ", layout " << layout << (layerwise ? ", layerwise" : ""));
  check_against_plain(ledger, layout, layerwise);
}

TEST_CASE("layout peaks equal the twin's", "[metrics][random]") {
  const int seed = GENERATE(take(200, random(0, 1 << 30)));
  Random random(static_cast<unsigned>(seed));
  Ledger ledger;
  kvspan::twin::Trace trace;
  kvspan::twin::Plan plan;
  trace.tokens = static_cast<int>(random.between(1, 120));
  trace.prompt_tokens = static_cast<int>(random.between(1, trace.tokens));
  plan.chunk = static_cast<int>(random.between(0, 20));
  if (random.chance(30)) plan.evict_at = static_cast<int>(random.between(1, trace.prompt_tokens));
  trace.kv_heads = static_cast<int>(random.between(1, 3));
  trace.query_heads = trace.kv_heads * static_cast<int>(random.between(1, 3));
  trace.head_dim = 4;
  trace.v_head_dim = 3;
  trace.model_layers = static_cast<int>(random.between(1, 3));
  trace.layers.resize(at(trace.model_layers));
  // Stored sets of KV heads, or one a query head.
  ledger.heads = random.chance(30) ? trace.query_heads : trace.kv_heads;
  ledger.query_heads = trace.query_heads;
  ledger.layers = ledger.model_layers = trace.model_layers;
  ledger.plan = make_passes(trace.tokens, trace.prompt_tokens,
                            plan.evict_at < 0 ? trace.prompt_tokens : plan.evict_at, plan.chunk);
  ledger.representations = {{"entry", 14, 0}};
  ledger.charge.entry = random.between(0, 20);
  std::vector<int> deaths;
  for (int head = 0; head < ledger.layers * ledger.heads; ++head) {
    const std::int64_t reach = random.between(0, 60);
    for (int token = 0; token < trace.tokens; ++token) {
      const auto end =
          std::upper_bound(ledger.plan.ends.begin(), ledger.plan.ends.end(),
                           std::min<RowIndex>(token + random.between(0, reach), trace.tokens - 1));
      deaths.push_back(static_cast<int>(random.chance(80) ? *end : trace.tokens));
      ledger.death.push_back(static_cast<std::uint32_t>(deaths.back()));
    }
  }
  INFO("seed " << seed);
  const Metrics metrics = compute_metrics(ledger, kWhole);
  const auto twin = [&](const std::string& layout) {
    return kvspan::twin::layout_peak(layout, trace, plan, deaths, ledger.heads, 2,
                                     ledger.charge.entry);
  };
  CHECK(metrics.peak_bytes.total == twin("ideal"));
  for (const auto& [name, peak] : metrics.layouts) {
    INFO(name);
    CHECK(peak.total == twin(name));
    CHECK(peak.total == peak.kv + peak.overhead);
    CHECK(peak.total == std::max(peak.prefill, peak.decode));
    CHECK(peak.total >= metrics.peak_bytes.total);
  }
}

TEST_CASE("metrics of given deaths equal the twin's replay", "[metrics][random]") {
  const int seed = GENERATE(take(100, random(0, 1 << 30)));
  Random random(static_cast<unsigned>(seed));
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
  plan.evict_at = static_cast<int>(ledger.plan.evict_at);
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
  Random random(static_cast<unsigned>(seed));
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

TEST_CASE("a peak is at least the mean, and no layout is smaller than ideal", "[metrics][random]") {
  const int seed = GENERATE(take(30, random(0, 1 << 30)));
  Random random(static_cast<unsigned>(seed));
  const Ledger ledger = random_ledger(random, 100);
  const Metrics ideal = compute_metrics(ledger, kWhole);
  for (const std::string& layout : standard_layouts()) {
    INFO("seed " << seed << ", layout " << layout);
    const Metrics metrics = compute_metrics(ledger, accounting(layout));
    CHECK(metrics.peak_bytes.total * ledger.plan.tokens >= metrics.byte_rows);
    CHECK(metrics.peak_kv * 2 * static_cast<double>(ledger.plan.tokens) >=
          metrics.footprint * static_cast<double>(ledger.plan.tokens + 1) * (1 - 1e-12));
    CHECK(metrics.byte_rows >= ideal.byte_rows);
    CHECK(metrics.peak_bytes.total >= ideal.peak_bytes.total);
    CHECK(metrics.entry_rows == ideal.entry_rows);
    if (layout != "ideal") CHECK(metrics.peak_bytes == ideal.layouts.at(layout));
  }
}

namespace {

using Graph = boost::adjacency_matrix<boost::undirectedS>;

struct LargestClique {
  std::size_t* size;
  template <class Clique, class G>
  void clique(const Clique& clique, const G& /*graph*/) {
    *size = std::max(*size, clique.size());
  }
};

}  // namespace

TEST_CASE("the peak of a head is the largest clique of its lifetimes' interval graph",
          "[metrics][random]") {
  const int seed = GENERATE(take(60, random(0, 1 << 30)));
  Random random(static_cast<unsigned>(seed));
  // Any death after birth: what holds of intervals needs no passes.
  const RowIndex tokens = random.between(2, 22);
  const std::int64_t reach = random.between(1, tokens);
  Ledger ledger = paper_ledger(tokens, 0, 0);
  std::vector<std::uint32_t> deaths;
  for (RowIndex token = 0; token < tokens; ++token) {
    deaths.push_back(
        static_cast<std::uint32_t>(std::min(tokens, token + random.between(1, reach))));
  }
  add_head(ledger, deaths);
  Graph graph(at(tokens));
  for (std::size_t i = 0; i < at(tokens); ++i) {
    for (std::size_t j = i + 1; j < deaths[i]; ++j) boost::add_edge(i, j, graph);
  }
  // Without an edge the algorithm reports nothing: one token is a clique of its own.
  std::size_t largest = 1;
  boost::bron_kerbosch_all_cliques(graph, LargestClique{&largest});

  const Metrics metrics = compute_metrics(ledger, kWhole);
  INFO("seed " << seed);
  CHECK(metrics.peak_bytes.kv == static_cast<std::int64_t>(largest));
  CHECK(metrics.head_peak_kv[0][0] == static_cast<double>(largest) / static_cast<double>(tokens));
}
