// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/sweep.h"

#include <algorithm>
#include <atomic>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/digest.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/sweep/journal.h"
#include "sim/sweep/unit.h"
#include "sim/sweep/work.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Sums of files, taken again only where size or time of a file changed.
class Checksums {
 public:
  explicit Checksums(Records& records) : records_(records) {}

  std::string operator()(const std::vector<fs::path>& files) {
    const std::string name = fs::absolute(files.front()).lexically_normal().string();
    const std::optional<FileState> state = state_of(files);
    const auto known = records_.checksums.find(name);
    if (state && known != records_.checksums.end() && known->second.first == *state)
      return known->second.second;
    std::string sum = sha256_of_files(files);
    if (state) fresh_.push_back(file_record(name, *state, sum));
    return sum;
  }
  [[nodiscard]] const std::vector<json>& fresh() const { return fresh_; }

 private:
  static std::optional<FileState> state_of(const std::vector<fs::path>& files) {
    FileState state;
    for (const fs::path& file : files) {
      struct stat status {};
      if (::stat(file.c_str(), &status) != 0) return std::nullopt;
      state.size += static_cast<std::uint64_t>(status.st_size);
      constexpr std::int64_t kNano = 1'000'000'000;
      state.changed = std::max<std::int64_t>(
          state.changed, status.st_mtim.tv_sec * kNano + status.st_mtim.tv_nsec);
    }
    return state;
  }
  Records& records_;
  std::vector<json> fresh_;
};

// Seconds that a unit takes; after `most` of them, what its progress lets expect.
double time_unit(const Todo& todo, int threads, double most, const SweepWatch& watch,
                 SweepOutline& out) {
  const double begin = steady_seconds();
  std::atomic<double> share{0}, bound_at{begin};
  const auto stopped = [&] { return watch.cancelled && watch.cancelled(); };
  UnitRun run{out.plan, out.grid, *todo.unit, todo.cells, threads, {}, {}, {}};
  run.progress = [&](double done) { share = done; };
  run.cancelled = [&] { return stopped() || (share > 0 && steady_seconds() > begin + most); };
  run.planned = [&](std::int64_t bytes) {
    if (share == 0) bound_at = steady_seconds();
    out.memory_bytes = std::max(out.memory_bytes, bytes);
  };
  MemoryGate gate(out.memory_limit);
  try {
    (void)run_unit(run, gate);
    share = 1;
  } catch (const Interrupted&) {
    if (stopped()) throw;
  }
  return bound_at - begin + (steady_seconds() - bound_at) / share;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(journal_folder(folder), error);
  if (error) {
    throw ConfigError(fmt::format("--out: '{}' cannot be made a folder ({})", path_text(folder),
                                  error.message()));
  }
}

// Whether this process is to merge. Of a sweep in parts only the last one that ends is, because
// reading all journals a thousand times would take longer than the work: a part that is done leaves
// a file, named by the plan, and who finds those of all others is the last.
bool is_last(const fs::path& folder, const std::string& plan, const Shard& shard, bool done) {
  if (shard.count == 1) return true;
  const auto mark = [&](std::size_t part) {
    return journal_folder(folder) / fmt::format("{}-{}-of-{}.done",
                                                sha256_of_text(plan).substr(0, 16), part + 1,
                                                shard.count);
  };
  if (done) write_file_atomically(mark(shard.index), "");
  for (std::size_t part = 0; part < shard.count; ++part) {
    if (!fs::exists(mark(part))) return false;
  }
  return true;
}

// What a sweep begins with.
struct Start {
  Plan plan;
  Grid grid;
  Records records;
  std::string text;  // of the plan
};

Start begin(const Config& config, const fs::path& folder, const SweepOptions& options,
            Journal& journal) {
  Start start;
  start.records = read_records(journal_folder(folder), Keep::statuses);
  Checksums sums(start.records);
  start.plan = make_plan(config, std::ref(sums));
  start.grid = make_grid(start.plan, options.most_cells);
  make_folder(folder);
  if (!sums.fresh().empty()) journal.append(sums.fresh());
  start.text = to_json(start.plan).dump(1) + "\n";
  write_file_atomically(plan_path(folder), start.text);
  return start;
}

// ---- A team -------------------------------------------------------------------------------------

// More units than any sweep has: who takes them leaves none to the others.
constexpr std::int64_t kAllUnits = std::int64_t{1} << 40U;

// A character a cell, for what rank 0 found in the journals.
constexpr char kUnknown = '0';
std::string states_of(const Start& start) {
  std::string states(start.grid.cells.size(), kUnknown);
  for (std::size_t i = 0; i < states.size(); ++i) {
    const auto found = start.records.cells.find(start.grid.cells[i].id);
    if (found != start.records.cells.end())
      states[i] = static_cast<char>(kUnknown + 1 + static_cast<int>(found->second.status));
  }
  return states;
}

// Traces are summed and journals read once for all.
Start begin_together(const Config& config, const fs::path& folder, const SweepOptions& options,
                     Journal& journal) {
  Team& team = *options.team;
  const bool first = team.rank() == 0;
  Start start = first ? begin(config, folder, options, journal) : Start{};
  start.text = team.share(start.text);
  if (!first) {
    start.plan = parse_plan(start.text, "the plan of the team");
    start.grid = make_grid(start.plan, options.most_cells);
  }
  const std::string states = team.share(first ? states_of(start) : "");
  for (std::size_t i = 0; i < states.size() && !first; ++i) {
    if (states[i] != kUnknown) {
      start.records.cells[start.grid.cells[i].id].status =
          static_cast<CellRecord::Status>(states[i] - kUnknown - 1);
    }
  }
  return start;
}

Counts end_together(const Start& start, const fs::path& folder, const SweepOptions& options,
                    bool stopped) {
  Team& team = *options.team;
  if (stopped) (void)team.take(kAllUnits);
  team.wait();
  Counts counts;
  std::string text;
  if (team.rank() == 0) {
    const bool done = team.take(0) < kAllUnits;
    const Records records = is_last(folder, start.text, options.shard, done)
                                ? merge(folder).records
                                : read_records(journal_folder(folder), Keep::statuses);
    counts = count_cells(start.grid, records, options.shard);
    text = json{counts.done, counts.left_out, counts.failed, counts.left}.dump();
  }
  const json all = json::parse(team.share(text));
  counts = {all[0].get<std::size_t>(), all[1].get<std::size_t>(), all[2].get<std::size_t>(),
            all[3].get<std::size_t>()};
  team.leave();
  if (counts.left > 0) throw Interrupted();
  return counts;
}

}  // namespace

Counts run_sweep(const Config& config, const fs::path& folder, const SweepOptions& options,
                 const SweepWatch& watch) {
  Journal journal(journal_folder(folder));
  Start start = options.team == nullptr ? begin(config, folder, options, journal)
                                        : begin_together(config, folder, options, journal);
  const std::vector<Todo> todo = todo_of(start.grid, start.records, options);
  bool stopped = false;
  try {
    do_units({start.plan, start.grid, todo, options, watch, journal, start.records});
  } catch (const Interrupted&) {
    stopped = true;
  }
  if (options.team != nullptr) return end_together(start, folder, options, stopped);
  if (is_last(folder, start.text, options.shard, !stopped)) merge(folder);
  if (stopped) throw Interrupted();
  return count_cells(start.grid, start.records, options.shard);
}

SweepOutline outline_sweep(const Config& config, const fs::path& folder,
                           const SweepOptions& options, double sample_seconds,
                           const SweepWatch& watch) {
  constexpr std::size_t kSampled = 4;
  Records records = read_records(journal_folder(folder), Keep::statuses);
  Checksums sums(records);
  SweepOutline out;
  out.plan = make_plan(config, std::ref(sums));
  out.grid = make_grid(out.plan, options.most_cells);
  out.cells = count_cells(out.grid, records, options.shard);
  out.memory_limit = memory_of(options);
  const std::vector<Todo> todo = todo_of(out.grid, records, options);
  out.replays = todo.size();
  const Crew crew = crew_of(options, todo);
  out.sampled = sample_seconds > 0 ? std::min(kSampled, todo.size()) : 0;
  double seconds = 0, cost = 0, left = 0;
  for (const Todo& one : todo) left += one.unit->cost;
  for (std::size_t s = 0; s < out.sampled; ++s) {
    const Todo& one = todo[(2 * s + 1) * todo.size() / (2 * out.sampled)];
    seconds +=
        time_unit(one, crew.threads, sample_seconds / static_cast<double>(out.sampled), watch, out);
    cost += one.unit->cost;
  }
  if (cost > 0) out.seconds = seconds / cost * left / static_cast<double>(crew.jobs);
  return out;
}

}  // namespace kvspan::sweep
