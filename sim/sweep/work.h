// SPDX-License-Identifier: Apache-2.0
// Internal to sweeps: the units that are to be done, by several threads, alone or in a team.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sim/sweep/journal.h"
#include "sim/sweep/sweep.h"

namespace kvspan::sweep {

[[nodiscard]] inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Todo {
  const Unit* unit = nullptr;
  std::vector<std::size_t> cells;  // that are neither done nor left out
};
// Units of the shard that have such cells. Of a team all of the shard's, since it takes them by
// their places.
[[nodiscard]] std::vector<Todo> todo_of(const Grid& grid, const Records& records,
                                        const SweepOptions& options);

// How units share the machine: as many at a time as there are threads, each with one; few units
// have more threads each.
struct Crew {
  std::size_t jobs = 1;
  int threads = 1;
};
[[nodiscard]] Crew crew_of(const SweepOptions& options, const std::vector<Todo>& todo);

// Of all replays together.
[[nodiscard]] std::int64_t memory_of(const SweepOptions& options);

struct Workplace {
  const Plan& plan;
  const Grid& grid;
  const std::vector<Todo>& todo;
  const SweepOptions& options;
  const SweepWatch& watch;
  Journal& journal;
  Records& records;  // take up what is done
};
// Errors: what the first thread that failed met; Interrupted.
void do_units(const Workplace& at);

}  // namespace kvspan::sweep
