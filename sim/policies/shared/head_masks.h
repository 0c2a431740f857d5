// SPDX-License-Identifier: Apache-2.0
// Shared by policies that treat heads differently: numbers per (layer, head) from a file or fitted
// on a trace, and masks of full and streaming heads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/policies/shared/whole_trace.h"
#include "sim/policy/registry.h"

namespace kvspan::policies {

using HeadScores = std::vector<std::vector<double>>;  // [layers][heads]
using Mask = std::vector<std::vector<bool>>;          // [layers][kv_heads] true: full head

// For notes: "" unless what is fitted on the trace rests on attention that the trace cut off.
[[nodiscard]] std::string truncation(const Trace* trace);

// Where numbers per head come from: a parameter names a file of them, or a trace (*.safetensors) to
// fit them on; auto: the replayed trace.
struct HeadSource {
  std::string file;                    // of numbers; empty: fitted
  std::shared_ptr<const Trace> other;  // named in place of a file
  const Trace* trace = nullptr;        // to fit on; null: a file, or none (the analytic model)
  bool future = false;                 // it is the replayed one, whose later rows are looked at
  [[nodiscard]] bool fitted() const { return file.empty(); }
  // "this trace (reads the future)", or the other trace's name with the same warning if it is due.
  [[nodiscard]] std::string fitted_on() const;
};
// Errors: TraceError naming the policy when the other trace is of another model.
[[nodiscard]] HeadSource head_source(const Arguments& arguments, const std::string& parameter,
                                     const Geometry& geometry);

// Reads [layers][heads] as JSON or TSV; the file holds the stored layers, or all of the model's.
//   query_heads  a layer may hold one number per query head instead of one per KV head
// Errors: TraceError naming the policy, the file and what was expected.
[[nodiscard]] HeadScores read_head_scores(const std::string& policy, const std::string& file,
                                          const Geometry& geometry, bool query_heads = false);

// The rows of the stored layers, where a table may hold all layers of the model.
template <class Row>
[[nodiscard]] std::vector<Row> stored_layers(const std::vector<Row>& table,
                                             const Geometry& geometry) {
  if (table.size() == static_cast<std::size_t>(geometry.layers())) return table;
  std::vector<Row> out;
  for (const int id : geometry.layer_ids) out.push_back(table[static_cast<std::size_t>(id)]);
  return out;
}

// Mean mass outside sinks and recent window over rows [N/2, N), maximum over the group.
//   returns [layers of the trace][kv_heads]. Of the replayed trace it reads the future.
[[nodiscard]] HeadScores fitted_gates(const Trace& trace, const Protect& protect);

// How many of `heads` different gates lie below their quantile: numpy's linear interpolation, as
// DuoAttention's code uses it (with noise below 1e-6 against ties; here ties go to the lower
// (layer, head)).
[[nodiscard]] std::int64_t below_quantile(double quantile, std::int64_t heads);

// Exactly `streaming` heads stream, the lowest gates; ties go to the lower (layer, head).
[[nodiscard]] Mask cut_lowest(const HeadScores& gates, std::int64_t streaming);
// Exactly `full` heads are full, the highest gates; ties go to the lower (layer, head).
[[nodiscard]] Mask cut_highest(const HeadScores& gates, std::int64_t full);

// Full heads keep everything, streaming heads sinks and a recent window, after every pass.
//   mask [stored layers][kv_heads]. Charges one bit per head.
[[nodiscard]] Recipe streaming_heads(Mask mask, const Protect& protect, const Geometry& geometry);

}  // namespace kvspan::policies
