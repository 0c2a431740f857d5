// SPDX-License-Identifier: Apache-2.0
// Attention under many death vectors at once. Of policies that read all that they hold, as it was
// born, fidelity follows from who has left when; so it is taken when a layer has been decided, in
// one pass over q and k that serves all of them, by whoever answers: this machine's CPU
// (host_scores.h) or a device.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/trace/trace.h"

namespace kvspan {

// Entry t of a stored head is read by the rows t ... death - 1.
struct DeathVector {
  std::span<const std::uint32_t> deaths;  // [heads, tokens]; empty: nobody dies
  int heads = 1;                          // stored ones: kv_heads or query_heads
  std::int64_t begin = 0, end = 0;        // entries that count; others are nowhere
  bool outputs = false;                   // the rows' outputs are compared, too
};

// One layer of a qkv trace.
struct ScoreTask {
  const Trace& trace;
  int layer = 0;
  std::span<const std::int64_t> rows;  // ascending, one at least
  std::span<const DeathVector> vectors;
};

// What some of the rows still reach.
struct ScorePiece {
  std::span<const std::int64_t> rows;  // of the task, those that follow the last piece's
  int query_heads = 0;
  // [vectors, query_heads, rows] full-cache probability, without a sink's, of what is read
  std::vector<double> retained;
  // The same shape: relative distance of the output from the full cache's; 0 where not asked for.
  std::vector<double> error;
  [[nodiscard]] std::size_t at(std::size_t vector, int query_head, std::size_t row) const {
    return (vector * static_cast<std::size_t>(query_heads) + static_cast<std::size_t>(query_head)) *
               rows.size() +
           row;
  }
  void resize(std::size_t vectors) {
    retained.assign(at(vectors, 0, 0), 0.0);
    error.assign(at(vectors, 0, 0), 0.0);
  }
};

// How far two passes were apart, of the rows that both took.
struct ScoreAudit {
  double share = 0;                // of the rows, as asked
  std::int64_t rows = 0;           // of all layers
  std::int64_t values = 0;         // (vector, query head, row)
  double retained = 0, error = 0;  // largest differences
};

class ScorePass {
 public:
  virtual ~ScorePass() = default;
  // Where: "host", "NVIDIA H200".
  [[nodiscard]] virtual std::string name() const = 0;
  // Hands all rows to `use`, piece by piece. May be called from several threads.
  // Errors: TraceError on values that are not numbers; DeviceError; whatever `use` throws.
  virtual void measure(const ScoreTask& task,
                       const std::function<void(const ScorePiece&)>& use) = 0;
  // So far; nullopt: nobody compares.
  [[nodiscard]] virtual std::optional<ScoreAudit> audit() const { return std::nullopt; }
};

}  // namespace kvspan
