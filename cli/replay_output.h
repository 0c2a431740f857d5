// SPDX-License-Identifier: Apache-2.0
// What the command `replay` finds, and how it is shown: a table, and JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "cli/replay_slots.h"
#include "gpu_replay/replay/attention_replay.h"
#include "gpu_replay/replay/fill.h"
#include "gpu_replay/replay/memory_replay.h"
#include "sim/predict/analytic.h"
#include "sim/run/result.h"

namespace kvspan::cli {

// How many sequences fit by kvspan predict, which knows no trace.
struct BatchPredicted {
  std::string why_not;  // empty: there is a figure
  std::int64_t sequences = 0;
  Basis basis = Basis::closed_form;
};

// One run in one layout.
struct LayoutFound {
  gpu_replay::MemoryReplay memory;
  std::optional<gpu_replay::Fill> fill;
  BatchPredicted batch;  // beside `fill`
};

// Attention of one run's decode rows, from the pool.
struct AttentionFound {
  std::string why_not;  // empty: it was replayed
  gpu_replay::AttentionReplay pool;
  double retained = 0, error = 0;  // the simulator's, of the same rows
};

struct ReplayFound {
  const RunReport* report = nullptr;
  std::string device;
  bool mapped = true;                          // or else allocated: see DeviceMemory
  std::int64_t granule = 0, limit = 0;         // bytes; limit 0: none
  std::vector<std::vector<LayoutFound>> runs;  // [runs][layouts]
  std::vector<AttentionFound> attention;       // [runs], or empty: not asked
  std::vector<std::vector<SlotsFound>> slots;  // [runs][block sizes], or empty: not asked
};

void print_replay(const ReplayFound& found);
[[nodiscard]] nlohmann::json replay_json(const ReplayFound& found, bool timelines);
// Where pool and simulator differ, in one line; empty: nowhere.
[[nodiscard]] std::string differences(const ReplayFound& found);

}  // namespace kvspan::cli
