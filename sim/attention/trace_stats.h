// SPDX-License-Identifier: Apache-2.0
// Statistics of a trace's full-cache attention, per layer and query head, on an even sample of
// rows: where the mass lies, how concentrated it is, whether the same keys stay important.
// For a score trace every figure counts what the trace holds; `residual` is what it hides.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/policy/policy.h"
#include "sim/trace/trace.h"

namespace kvspan {

struct TraceStatsOptions {
  std::int64_t sinks = 4;    // the first keys of the sequence
  std::int64_t window = 64;  // "local": the newest keys of a row, its own included
  std::int64_t rows = 0;     // of the prompt, and as many of the decode rows; 0: see sampled_rows
  RowIndex from = -1;        // first row of the prompt to look at; -1: the middle of the prompt
  std::vector<int> layers = {};  // of the MODEL; empty: all that are stored
};

// Mean over rows. Shares of a row's probability; what a sink logit takes (gpt-oss) is nobody's.
struct RowStats {
  std::int64_t rows = 0;   // 0: there are none, and the rest means nothing
  double sink = 0;         // on the first `sinks` keys
  double local = 0;        // on the newest `window` keys that are no sinks
  double entropy = 0;      // -sum p ln p, nats; a score trace: lower bound
  double entropy_max = 0;  // the same, unless the trace hides a residual: upper bound
  double support = 0;      // exp(entropy), mean of the rows' values
  double sink_logit = 0;   // taken by the model's own sink logit
  double residual = 0;     // hidden by a score trace: every share is too low by at most this
  std::vector<double>
      distance;             // [bins] on keys that are no sinks at distance [bins[b], bins[b + 1])
  std::vector<double> top;  // [kTopKeys] on the k largest
  std::vector<double> top_shares;  // [kTopShares] on the ceil(share * readable keys) largest
  std::vector<double> spans;       // [spans] on the keys of a named span
};

inline constexpr std::int64_t kTopKeys[] = {1, 4, 16, 64, 256};
inline constexpr double kTopShares[] = {0.01, 0.05, 0.2};
inline constexpr double kHitterShare = 0.1;  // of the keys, for persistence

// Of several classes that apply, the first; by these names, a space for the underscore:
//   retrieval     decode rows put >= 0.5 on the spans whose names begin with "needle", together
//   sink          prompt rows put >= 0.5 on the sinks
//   local         prompt rows put >= 0.5 on the window (without sinks)
//   heavy_hitter  persistence >= 0.5
//   broad         everything else
// Source: sinks, StreamingLLM (2309.17453); retrieval heads, Wu et al. (2404.15574), who count
// copied tokens where this counts mass; the thresholds are ours.
enum class HeadClass : std::uint8_t { retrieval, sink, local, heavy_hitter, broad };
[[nodiscard]] std::string_view head_class_name(HeadClass head_class);

struct HeadStats {
  RowStats prompt, decode;
  // Persistence of importance. The prompt's sampled rows are cut into four windows of equal count.
  // Of window A and the next, B: over the keys older than A, the share of the tenth that received
  // most from A which is also in the tenth that received most from B (ties: lower key; never more
  // keys than received anything); mean over the three pairs. Chance gives 0.1. `into_decode` is the
  // same with A = the last window and B = the decode rows.
  // Source: persistence of importance hypothesis, Scissorhands (2305.17118, sec. 3), who call
  // important what receives more than the average.
  std::optional<double> persistence, into_decode;
  HeadClass head_class = HeadClass::broad;
};

struct LayerStats {
  int layer = 0;                 // the model's index
  std::vector<HeadStats> heads;  // [query_heads]
};

struct TraceStats {
  TraceStatsOptions options;       // with the defaults filled in
  std::vector<std::int64_t> bins;  // first distance of each: 0 (own token), 1, 2, 4, 8, ...
  std::vector<Span> spans;
  std::vector<LayerStats> layers;
};

// The sample: `count` of `rows`, evenly, the last included; all of them if there are fewer.
[[nodiscard]] std::vector<RowIndex> even_sample(const std::vector<RowIndex>& rows,
                                                std::int64_t count);

// Bin of a distance: 0, then 1 + floor(log2 distance).
[[nodiscard]] std::size_t distance_bin(std::int64_t distance);

// Deterministic: the bits do not depend on the number of threads. Rows: options.rows, or 2^23 /
// tokens, at least 16 and at most 512. `tick` (may be empty) is told the share that is done and may
// throw. Memory: keys of one layer in fp32, and about 20 bytes per token and query head.
// Errors: ConfigError on a layer that the trace does not store, or options outside their ranges;
// TraceError on values that are not numbers, or when a score trace holds no row of the sample.
[[nodiscard]] TraceStats trace_stats(const Trace& trace, const TraceStatsOptions& options,
                                     const std::function<void(double)>& tick = {});

// {"sinks","window","from","rows","bins":[..],"spans":[{"name","begin","end"}],
//  "top_keys":[..],"top_shares":[..],
//  "layers":[{"layer","heads":[{"head","class","persistence","into_decode",
//    "prompt":{"rows","sink","local","entropy","entropy_max","support","sink_logit","residual",
//              "distance":[..],"top":[..],"top_share":[..],"spans":[..]},
//    "decode":{the same}|null}]}]}
[[nodiscard]] nlohmann::json to_json(const TraceStats& stats);

}  // namespace kvspan
