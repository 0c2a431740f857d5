// SPDX-License-Identifier: Apache-2.0
// One unit of a sweep: a replay, from its cells to their records.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/replay/options.h"
#include "sim/sweep/grid.h"

namespace kvspan::sweep {

// Memory that replays share: who needs more than is free waits, unless nobody else has any.
class MemoryGate {
 public:
  explicit MemoryGate(std::int64_t bytes) : bytes_(bytes) {}
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }
  // Runs `work` while `bytes` are held.
  void with(std::int64_t bytes, const std::function<void()>& work);

 private:
  void give_back(std::int64_t bytes);
  std::int64_t bytes_, held_ = 0;
  std::mutex mutex_;
  std::condition_variable freed_;
};

// What a setting says of its replays. Errors: ConfigError, TraceError.
[[nodiscard]] EngineOptions replay_options(const Trace& trace, const Setting& setting,
                                           const Config& config);

struct UnitRun {
  const Plan& plan;
  const Grid& grid;
  const Unit& unit;
  std::vector<std::size_t> cells;  // those of the unit that are wanted
  int threads = 1;
  std::function<void(double)> progress;  // of the unit, in [0, 1], from any thread
  std::function<bool()> cancelled;
  std::function<void(std::int64_t bytes)> planned;  // before each replay: its memory at most
};

// A record of every wanted cell. What cannot run alone, or breaks down, fails by itself; what does
// not fit the gate at once is replayed in parts. Errors: Interrupted.
[[nodiscard]] std::vector<nlohmann::json> run_unit(const UnitRun& run, MemoryGate& gate);

}  // namespace kvspan::sweep
