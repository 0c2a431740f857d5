// SPDX-License-Identifier: Apache-2.0
// Footprint, peak, bytes, layouts, traffic: pure functions of the ledger.
// Definitions: arXiv 2506.17121, section 2.1 and appendix A; conventions in the README ("What is
// measured").
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sim/ledger/layouts.h"
#include "sim/ledger/ledger.h"
#include "sim/ledger/peaks.h"

namespace kvspan {

// How bytes are counted.
struct Accounting {
  std::int64_t kv_bytes = 2;  // per element; already inside Ledger::representations
  // Prefill peak: each layer compresses right after its own attention, and its survivors are there
  // twice for a moment. Not in layouts that move nothing: masked, and blocks without compaction.
  bool layerwise = false;
  std::string layout = "ideal";  // a name of layouts.h
};

// One value a row, summed over layers and heads. [tokens]
struct Timeline {
  std::vector<std::int64_t> resident_entries;
  std::vector<std::int64_t> resident_bytes;  // kv + overhead
  std::vector<std::int64_t> overhead_bytes;
  std::vector<std::int64_t> host_bytes;
  std::vector<std::int64_t> active_entries;  // read in this row
};

struct LayerMetrics {
  double footprint = 0, peak_kv = 0;
  std::int64_t peak_bytes = 0;  // of this layer alone, without Charge::once
};

struct Metrics {
  double footprint = 0;  // resident entry-rows / (layers * heads * N(N+1)/2)
  double peak_kv = 0;    // max over rows of resident entries / (layers * heads * N)
  std::int64_t entry_rows = 0, full_entry_rows = 0;
  double host_footprint = 0;
  PeakBytes peak_bytes;        // in the chosen layout
  std::int64_t byte_rows = 0;  // sum over rows of kv + overhead, in the chosen layout
  std::int64_t host_peak_bytes = 0;
  std::int64_t entries_read = 0, bytes_read = 0;  // per row, union over a KV head's query heads
  Timeline timeline;                              // bytes in the chosen layout
  std::vector<LayerMetrics> per_layer;
  std::vector<std::vector<double>> head_footprint, head_peak_kv;  // [layers][heads]
  std::map<std::string, PeakBytes> layouts;  // every standard layout but the chosen one
};

// Overhead is that of the resident entries in every layout. A slot of a block or mask has
// representation 0's size, whatever its entry is held as.
// REQUIRES: changes of a layer in order of row, after their tokens' births.
// Memory: O(layouts * tokens), and the changes of one layer at a time.
// Errors: ConfigError on an unknown layout, naming the nearest.
[[nodiscard]] Metrics compute_metrics(const Ledger& ledger, const Accounting& accounting);

}  // namespace kvspan
