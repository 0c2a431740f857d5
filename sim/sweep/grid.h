// SPDX-License-Identifier: Apache-2.0
// The cells of a sweep: a pure function of the plan, which is what the configuration found when it
// met its files. Whoever has the plan has the cells, without traces.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/sweep/config.h"
#include "sim/trace/trace.h"

namespace kvspan::sweep {

struct SweepTrace {
  std::string path, sha256, model;
  std::int64_t tokens = 0, prompt_tokens = 0;
  int layers = 0, model_layers = 0, query_heads = 0, kv_heads = 0;
};

// A policy of the sweep, without sets.
struct SweepSpec {
  std::string text;
  bool from_all = false;            // "all" named it: a trace that cannot serve it leaves it out
  std::vector<std::string> sha256;  // of the files that it reads, in its order
};

struct Plan {
  Config config;
  std::string version;  // of the program
  std::vector<SweepTrace> traces;
  std::vector<SweepSpec> specs;
};

// SHA-256 of what one path names: a trace with its shards, or a file.
using Checksum = std::function<std::string(const std::vector<std::filesystem::path>&)>;

// Finds the files of the patterns, opens the traces, expands the policies.
// Errors: ConfigError when a pattern finds nothing or a trace is given twice; TraceError.
[[nodiscard]] Plan make_plan(const Config& config, const Checksum& checksum);

[[nodiscard]] nlohmann::json to_json(const Plan& plan);
// Errors: ConfigError naming `name`.
[[nodiscard]] Plan parse_plan(std::string_view text, const std::string& name);

// What one replay is of: all of its policies share one pass over attention.
struct Setting {
  std::size_t trace = 0;  // in Plan::traces
  RowIndex prompt = 0;
  std::string evict_at;
  RowIndex chunk = 0;
  std::int64_t kv_bytes = 2;
  std::uint64_t seed = 0;
};

// How a ledger is counted; needs no replay of its own.
struct Counting {
  std::string prefill, layout;
};

struct Cell {
  // The first 64 bits of the SHA-256 of cell_text(): the same for the same work, wherever it lies
  // in a sweep, and another one when the trace, a file, the specification or the program changes.
  std::uint64_t id = 0;
  std::size_t setting = 0, spec = 0, counting = 0;  // in the grid, the plan, the grid
};

// What the optima of regrets cost beside a replay, relative to it.
[[nodiscard]] double cost_of_regrets(RowIndex tokens, RowIndex passes);

// A replay: what is done, or lost, as a whole.
struct Unit {
  std::uint64_t id = 0;  // of the ids of its cells
  std::size_t setting = 0;
  std::vector<std::size_t> cells;
  double cost = 0;        // relative to other units
  std::size_t place = 0;  // from the costliest unit, equal ones by id: who gets it
};

struct Grid {
  std::vector<Setting> settings;
  std::vector<Counting> countings;
  std::vector<Cell> cells;  // by trace, setting, counting, policy
  std::vector<Unit> units;  // by trace, then the costly ones first
};
// Errors: ConfigError when there are more than `most` cells.
[[nodiscard]] Grid make_grid(const Plan& plan, std::size_t most = kMostCells);

// Canonical JSON of all that a cell's figures depend on.
[[nodiscard]] std::string cell_text(const Plan& plan, const Setting& setting, const SweepSpec& spec,
                                    const Counting& counting);

[[nodiscard]] std::string id_text(std::uint64_t id);  // 16 hex digits

// Part `index` of `count`, from 0.
struct Shard {
  std::size_t index = 0, count = 1;
  std::string source;  // "--shard", "OpenMPI", ...; empty: the whole sweep
  // Units are dealt forth and back, 0 1 2 2 1 0 0 ..: parts cost about the same.
  [[nodiscard]] bool has(const Unit& unit) const {
    const std::size_t turn = unit.place % (2 * count);
    return std::min(turn, 2 * count - 1 - turn) == index;
  }
};
// What launchers say in their variables: rank and size of the processes that were started together
// (OpenMPI, other MPIs' PMI, a step of Slurm), and the place in a Slurm array. Errors: ConfigError.
struct Launch {
  Shard rank, array;
  std::size_t here = 1;  // processes on this node, which share its memory
};
[[nodiscard]] Launch launch_of(const std::function<const char*(const char*)>& variable);

// "2/16" (from 1), or "auto": as launch_of() says; rank and array multiply. Errors: ConfigError.
[[nodiscard]] Shard parse_shard(const std::string& text,
                                const std::function<const char*(const char*)>& variable);

}  // namespace kvspan::sweep
