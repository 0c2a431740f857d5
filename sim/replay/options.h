// SPDX-License-Identifier: Apache-2.0
// How a trace is replayed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "sim/base/types.h"

namespace kvspan {

class ScorePass;

// A sample of a long prompt's rows says what the whole would, at a fraction of the work.
inline constexpr RowIndex kLongPrompt = 4096;
inline constexpr RowIndex kSampledRows = 512;

// A random part of what fidelity is measured of: rows of each phase, KV heads of all layers
// together, or layers. It changes no decision; what it says of the whole has an interval.
struct FidelitySample {
  enum class Of : std::uint8_t { everything, rows, heads, layers };
  Of of = Of::everything;
  std::int64_t count = 0;  // more than there are: all
  std::uint64_t seed = 0;
};

struct EngineOptions {
  RowIndex prompt = 0;       // 0: as the trace says
  RowIndex evict_point = 0;  // 0: at the prompt's end
  RowIndex chunk = 0;        // prefill chunk, tokens; 0: one pass
  std::int64_t kv_bytes = 2;
  std::uint64_t seed = 0;
  bool fidelity = true;
  RowIndex fidelity_rows = 0;        // per phase; 0: all
  bool sample_long_prompts = false;  // of prompts beyond kLongPrompt rows, measures kSampledRows
  FidelitySample sample;
  bool output_error = true;     // where the trace has v
  bool keep_scores = false;     // score and rank of every eviction, in the ledger
  std::int64_t keep_reads = 0;  // bytes of Ledger::reads of one policy at most; 0: none
  int threads = 0;              // 0: all cores
  RowIndex block_rows = 0;      // 0: chosen by size (tests only)
  // Takes the fidelity of policies that hold entries plainly, on qkv traces, when a layer has been
  // decided; null: it is measured on the way.
  std::shared_ptr<ScorePass> scores;
  std::function<void(double done)> progress;  // in [0, 1], from any thread
  std::function<bool()> cancelled;            // polled; true ends the replay with Interrupted

  // Rows of the prompt whose fidelity is measured; 0: all.
  [[nodiscard]] RowIndex prompt_rows_measured(RowIndex rows) const {
    const bool sampled = fidelity_rows == 0 && sample_long_prompts && rows > kLongPrompt;
    return sampled ? kSampledRows : fidelity_rows;
  }
};

}  // namespace kvspan
