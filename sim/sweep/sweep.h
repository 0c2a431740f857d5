// SPDX-License-Identifier: Apache-2.0
// A sweep: the units of a grid, many at a time in bounded memory, each journalled when it is done.
// Killed at any moment, it loses the units in flight; started again, it does what is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "sim/sweep/records.h"
#include "sim/sweep/team.h"

namespace kvspan::sweep {

struct SweepOptions {
  int threads = 0;  // 0: all cores
  std::int64_t memory_bytes =
      0;  // anonymous memory of all replays together; 0: half of the machine, shared by all here
  std::size_t processes_here = 1;
  std::size_t most_cells = kMostCells;
  Shard shard;
  Team* team = nullptr;  // with whom the units of the shard are shared; null: nobody
};

// Of the cells of this process's shard; in a team, as far as units have been taken.
struct SweepProgress {
  Counts cells;
  double done = 0;  // share of the work that was left at the start
};

struct SweepWatch {
  std::function<void(const SweepProgress&)> progress;  // from any thread, one at a time
  std::function<bool()> cancelled;  // polled; true drops the units in flight, with Interrupted
};

// Makes the folder and its plan, runs what is left of the shard, and merges what is there: of a
// sweep in parts the last one to end does, of a team rank 0 when all have ended. A member of a team
// that is stopped stops the others, too, and all return or throw the same.
// Failures of cells are recorded with their reason, and tried again by the next call.
// Errors: ConfigError, TraceError of the configuration; Error of the disk; Interrupted.
[[nodiscard]] Counts run_sweep(const Config& config, const std::filesystem::path& folder,
                               const SweepOptions& options, const SweepWatch& watch = {});

// What run_sweep() would do. Sums of files are taken from the folder's journals, if it has any.
struct SweepOutline {
  Plan plan;
  Grid grid;
  Counts cells;                   // of the shard
  std::size_t replays = 0;        // left
  std::int64_t memory_bytes = 0;  // of the largest replay of the sample
  std::int64_t memory_limit = 0;  // of all together
  // From replays of a sample: seconds on this machine, and how many were sampled.
  std::optional<double> seconds;
  std::size_t sampled = 0;
};
//   sample_seconds  what sampling may take; 0: no estimate
[[nodiscard]] SweepOutline outline_sweep(const Config& config, const std::filesystem::path& folder,
                                         const SweepOptions& options, double sample_seconds,
                                         const SweepWatch& watch = {});

}  // namespace kvspan::sweep
