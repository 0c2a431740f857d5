// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/grid.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/digest.h"
#include "sim/base/error.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;

// Policies of one replay at most: enough to share attention, few enough to lose.
constexpr std::size_t kMostPolicies = 64;
// Their ledgers at most, which is what a replay keeps until its end.
constexpr std::int64_t kLedgerBytes = std::int64_t{2} << 30U;
// What a replay costs beside its policies, in policies: see tests/bench/README.md.
constexpr double kSharedCost = 8;

std::uint64_t id_of(std::string_view text) {
  const std::string hex = sha256_of_text(text).substr(0, 16);
  std::uint64_t id = 0;
  std::from_chars(hex.data(), hex.data() + hex.size(), id, 16);
  return id;
}

std::size_t policies_of_a_unit(const SweepTrace& trace) {
  const std::int64_t ledger =
      std::max<std::int64_t>(1, trace.tokens * trace.layers * trace.query_heads * 4);
  return static_cast<std::size_t>(
      std::clamp<std::int64_t>(kLedgerBytes / ledger, 1, static_cast<std::int64_t>(kMostPolicies)));
}

RowIndex passes_of(const SweepTrace& trace, const Setting& setting) {
  const RowIndex prompt =
      std::min(setting.prompt == 0 ? trace.prompt_tokens : setting.prompt, trace.tokens);
  const RowIndex chunk = setting.chunk == 0 ? std::max<RowIndex>(1, prompt) : setting.chunk;
  return trace.tokens - prompt + (prompt + chunk - 1) / chunk;
}

double attention_of(const SweepTrace& trace) {
  const auto tokens = static_cast<double>(trace.tokens);
  return tokens * (tokens + 1) / 2 * trace.layers * trace.query_heads;
}

std::vector<Setting> settings_of(const Plan& plan) {
  const Config& config = plan.config;
  std::vector<Setting> out;
  for (std::size_t trace = 0; trace < plan.traces.size(); ++trace) {
    for (const RowIndex prompt : config.prompts) {
      for (const std::string& evict_at : config.evict_at) {
        for (const RowIndex chunk : config.chunks) {
          for (const std::int64_t kv_bytes : config.kv_bytes) {
            for (const std::uint64_t seed : config.seeds)
              out.push_back({trace, prompt, evict_at, chunk, kv_bytes, seed});
          }
        }
      }
    }
  }
  return out;
}

// Of cells [first, end) of one setting and one counting, and the same of its other countings.
Unit unit_of(const Plan& plan, const Grid& grid, std::size_t first, std::size_t count) {
  Unit unit;
  unit.setting = grid.cells[first].setting;
  std::string text;
  for (std::size_t counting = 0; counting < grid.countings.size(); ++counting) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t cell = first + counting * plan.specs.size() + i;
      unit.cells.push_back(cell);
      text += id_text(grid.cells[cell].id);
    }
  }
  unit.id = id_of(text);
  const Setting& setting = grid.settings[unit.setting];
  const SweepTrace& trace = plan.traces[setting.trace];
  unit.cost = attention_of(trace) * (kSharedCost + static_cast<double>(count));
  if (plan.config.regret) unit.cost *= 1 + cost_of_regrets(trace.tokens, passes_of(trace, setting));
  return unit;
}

// ---- Shards -------------------------------------------------------------------------------------

std::optional<std::size_t> number(const char* text) {
  if (text == nullptr) return std::nullopt;
  std::size_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || stop == text) return std::nullopt;
  return value;
}

Shard part(std::size_t index, std::size_t count, const std::string& source) {
  constexpr std::size_t kMost = 1'000'000;
  if (count == 0 || count > kMost || index >= count) {
    throw ConfigError(fmt::format("{}: found part {} of {}, expected 1 to {} of at most {}", source,
                                  index + 1, count, std::max<std::size_t>(count, 1), kMost));
  }
  return {index, count, source};
}

// Of the processes that were started together.
Shard rank_of(const std::function<const char*(const char*)>& variable) {
  struct Names {
    const char *rank, *size, *source;
  };
  constexpr Names kNames[] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OpenMPI"},
                              {"PMI_RANK", "PMI_SIZE", "PMI"},
                              {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "Slurm step"}};
  for (const Names& names : kNames) {
    const auto rank = number(variable(names.rank));
    const auto size = number(variable(names.size));
    if (rank && size && *size > 1) return part(*rank, *size, names.source);
  }
  return {};
}

Shard array_of(const std::function<const char*(const char*)>& variable) {
  const auto id = number(variable("SLURM_ARRAY_TASK_ID"));
  const auto count = number(variable("SLURM_ARRAY_TASK_COUNT"));
  if (!id || !count || *count <= 1) return {};
  const std::size_t first = number(variable("SLURM_ARRAY_TASK_MIN")).value_or(0);
  const std::size_t step =
      std::max<std::size_t>(1, number(variable("SLURM_ARRAY_TASK_STEP")).value_or(1));
  if (*id < first) throw ConfigError("SLURM_ARRAY_TASK_ID is below SLURM_ARRAY_TASK_MIN");
  return part((*id - first) / step, *count, "Slurm array");
}

}  // namespace

double cost_of_regrets(RowIndex tokens, RowIndex passes) {
  // The catalogue on 1,880 tokens: 7.2 times the replay with 1,369 passes, 0.07 times with 16.
  constexpr double kAllPasses = 10;
  return kAllPasses * static_cast<double>(passes) / static_cast<double>(tokens);
}

std::string id_text(std::uint64_t id) { return fmt::format("{:016x}", id); }

std::string cell_text(const Plan& plan, const Setting& setting, const SweepSpec& spec,
                      const Counting& counting) {
  json text{{"accounting",
             {{"kv_bytes", setting.kv_bytes},
              {"layout", counting.layout},
              {"prefill", counting.prefill}}},
            {"chunk", setting.chunk},
            {"evict_at", setting.evict_at},
            {"fidelity", plan.config.fidelity},
            {"files", spec.sha256},
            {"policy", spec.text},
            {"prompt", setting.prompt},
            {"seed", setting.seed},
            {"trace", plan.traces[setting.trace].sha256},
            {"version", plan.version}};
  if (plan.config.regret) text["regret"] = true;
  if (!plan.config.sample.empty()) text["sample"] = plan.config.sample;
  return text.dump();
}

Grid make_grid(const Plan& plan, std::size_t most) {
  Grid grid;
  grid.settings = settings_of(plan);
  for (const std::string& prefill : plan.config.prefill) {
    for (const std::string& layout : plan.config.layouts)
      grid.countings.push_back({prefill, layout});
  }
  const std::size_t specs = plan.specs.size();
  const std::size_t cells = grid.settings.size() * grid.countings.size() * specs;
  if (cells > most) {
    throw ConfigError(
        fmt::format("{} cells ({} traces, {} settings, {} policies), and --max-cells allows {}",
                    cells, plan.traces.size(), grid.settings.size(), specs, most));
  }
  for (std::size_t s = 0; s < grid.settings.size(); ++s) {
    const std::size_t first = grid.cells.size();
    for (std::size_t c = 0; c < grid.countings.size(); ++c) {
      for (std::size_t p = 0; p < specs; ++p) {
        const std::string text =
            cell_text(plan, grid.settings[s], plan.specs[p], grid.countings[c]);
        grid.cells.push_back({id_of(text), s, p, c});
      }
    }
    const std::size_t at_once = policies_of_a_unit(plan.traces[grid.settings[s].trace]);
    for (std::size_t p = 0; p < specs; p += at_once)
      grid.units.push_back(unit_of(plan, grid, first + p, std::min(at_once, specs - p)));
  }
  std::vector<Unit*> by_cost;
  for (Unit& unit : grid.units) by_cost.push_back(&unit);
  std::sort(by_cost.begin(), by_cost.end(), [](const Unit* a, const Unit* b) {
    return std::tuple(-a->cost, a->id) < std::tuple(-b->cost, b->id);
  });
  for (std::size_t i = 0; i < by_cost.size(); ++i) by_cost[i]->place = i;
  // The traces in the order of their costs: a node that takes units in this order maps few files,
  // and ends with small ones.
  std::stable_sort(grid.units.begin(), grid.units.end(), [&](const Unit& a, const Unit& b) {
    const std::size_t ta = grid.settings[a.setting].trace, tb = grid.settings[b.setting].trace;
    return std::tuple(-attention_of(plan.traces[ta]), ta, -a.cost) <
           std::tuple(-attention_of(plan.traces[tb]), tb, -b.cost);
  });
  return grid;
}

Launch launch_of(const std::function<const char*(const char*)>& variable) {
  Launch launch{rank_of(variable), array_of(variable)};
  if (launch.rank.count == 1) return launch;
  // Slurm's is a list such as "4(x3),2"; its first number is the largest.
  for (const char* name :
       {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"}) {
    const char* text = variable(name);
    if (text == nullptr) continue;
    std::from_chars(text, text + std::strlen(text), launch.here);
    break;
  }
  launch.here = std::clamp<std::size_t>(launch.here, 1, launch.rank.count);
  return launch;
}

Shard parse_shard(const std::string& text,
                  const std::function<const char*(const char*)>& variable) {
  if (text == "auto") {
    Launch launch = launch_of(variable);
    const Shard &rank = launch.rank, &array = launch.array;
    if (array.source.empty()) return rank;
    if (rank.source.empty()) return array;
    return {array.index * rank.count + rank.index, array.count * rank.count,
            array.source + ", " + rank.source};
  }
  const std::size_t slash = text.find('/');
  const auto index = number(text.substr(0, slash).c_str());
  const auto count = slash == text.npos ? std::nullopt : number(text.substr(slash + 1).c_str());
  if (!index || !count || *index == 0) {
    throw ConfigError(
        fmt::format("--shard: found '{}', expected i/n such as 1/16, from 1 to n, or auto", text));
  }
  return part(*index - 1, *count, "--shard");
}

}  // namespace kvspan::sweep
