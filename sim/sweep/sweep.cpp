// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/sweep.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <sys/stat.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/digest.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/replay/memory_plan.h"
#include "sim/sweep/journal.h"
#include "sim/sweep/unit.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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

struct Todo {
  const Unit* unit = nullptr;
  std::vector<std::size_t> cells;
};

// Units of the shard that have cells which are neither done nor left out.
std::vector<Todo> todo_of(const Grid& grid, const Records& records, const Shard& shard) {
  std::vector<Todo> out;
  for (const Unit& unit : grid.units) {
    if (!shard.has(unit)) continue;
    Todo todo{&unit, {}};
    for (const std::size_t cell : unit.cells) {
      const auto found = records.cells.find(grid.cells[cell].id);
      if (found == records.cells.end() || found->second.status == CellRecord::Status::failed)
        todo.cells.push_back(cell);
    }
    if (!todo.cells.empty()) out.push_back(std::move(todo));
  }
  return out;
}

// How units share the machine: as many at a time as there are threads, each with one; few units
// have more threads each.
struct Crew {
  std::size_t jobs = 1;
  int threads = 1;
};
Crew crew_of(const SweepOptions& options, std::size_t units) {
  EngineOptions engine;
  engine.threads = options.threads;
  const auto threads = static_cast<std::size_t>(threads_of(engine));
  Crew crew;
  crew.jobs = std::max<std::size_t>(1, std::min(threads, units));
  crew.threads = static_cast<int>(std::max<std::size_t>(1, threads / crew.jobs));
  return crew;
}

std::int64_t memory_of(const SweepOptions& options) {
  if (options.memory_bytes > 0) return options.memory_bytes;
  return static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE) / 2;
}

// The units that are to be done, by several threads.
class Work {
 public:
  Work(const Plan& plan, const Grid& grid, const std::vector<Todo>& todo,
       const SweepOptions& options, const SweepWatch& watch, Journal& journal, Records& records)
      : plan_(plan),
        grid_(grid),
        todo_(todo),
        options_(options),
        watch_(watch),
        journal_(journal),
        records_(records),
        gate_(memory_of(options)),
        counts_(count_cells(grid, records, options.shard)),
        shares_(todo.size(), 0.0) {
    counts_.failed = counts_.left = 0;  // which is what is to be done
    for (const Todo& one : todo) {
      cost_ += one.unit->cost;
      counts_.left += one.cells.size();
    }
  }

  // Errors: what the first thread that failed met.
  void run() {
    if (todo_.empty()) return;
    const Crew crew = crew_of(options_, todo_.size());
    show();
    std::vector<std::thread> threads;
    for (std::size_t job = 1; job < crew.jobs; ++job)
      threads.emplace_back([&] { work(crew.threads); });
    work(crew.threads);
    for (std::thread& thread : threads) thread.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  [[nodiscard]] bool stopped() const { return stop_ || (watch_.cancelled && watch_.cancelled()); }

  void work(int threads) {
    try {
      for (std::size_t i = next_++; i < todo_.size(); i = next_++) {
        if (stopped()) throw Interrupted();
        finish(i, threads);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stop_ = true;
    }
  }

  void finish(std::size_t i, int threads) {
    const Todo& todo = todo_[i];
    const double begin = steady_seconds();
    const UnitRun run{plan_,
                      grid_,
                      *todo.unit,
                      todo.cells,
                      threads,
                      [&, i](double share) { show(i, share); },
                      [this] { return stopped(); },
                      {}};
    std::vector<json> records = run_unit(run, gate_);
    records.push_back(
        work_record({seconds_since_1970(), steady_seconds() - begin, todo.unit->cost}));
    journal_.append(records);
    {
      const std::lock_guard lock(mutex_);
      for (const json& record : records) {
        add_records(journal_line(record), records_);
        count(record);
      }
    }
    show(i, 1);
  }

  void count(const json& record) {
    const auto status = record.find("status");
    if (status == record.end()) return;
    --counts_.left;
    if (*status == name_of(CellRecord::Status::done)) ++counts_.done;
    if (*status == name_of(CellRecord::Status::left_out)) ++counts_.left_out;
    if (*status == name_of(CellRecord::Status::failed)) ++counts_.failed;
  }

  void show(std::size_t i, double share) {
    const std::lock_guard lock(mutex_);
    done_ += (share - shares_[i]) * todo_[i].unit->cost;
    shares_[i] = share;
    show();
  }
  void show() const {
    if (watch_.progress) watch_.progress({counts_, std::min(1.0, done_ / cost_)});
  }

  const Plan& plan_;
  const Grid& grid_;
  const std::vector<Todo>& todo_;
  const SweepOptions& options_;
  const SweepWatch& watch_;
  Journal& journal_;
  Records& records_;
  MemoryGate gate_;
  Counts counts_;
  std::vector<double> shares_;  // of units that are done
  double cost_ = 0, done_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
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

}  // namespace

Counts run_sweep(const Config& config, const fs::path& folder, const SweepOptions& options,
                 const SweepWatch& watch) {
  Records records = read_records(journal_folder(folder), Keep::statuses);
  Checksums sums(records);
  const Plan plan = make_plan(config, std::ref(sums));
  const Grid grid = make_grid(plan, options.most_cells);
  make_folder(folder);
  Journal journal(journal_folder(folder));
  if (!sums.fresh().empty()) journal.append(sums.fresh());
  const std::string text = to_json(plan).dump(1) + "\n";
  write_file_atomically(plan_path(folder), text);
  const std::vector<Todo> todo = todo_of(grid, records, options.shard);
  std::exception_ptr stopped;
  try {
    Work(plan, grid, todo, options, watch, journal, records).run();
  } catch (const Interrupted&) {
    stopped = std::current_exception();
  }
  if (is_last(folder, text, options.shard, !stopped)) merge(folder);
  if (stopped) std::rethrow_exception(stopped);
  return count_cells(grid, records, options.shard);
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
  const std::vector<Todo> todo = todo_of(out.grid, records, options.shard);
  out.replays = todo.size();
  const Crew crew = crew_of(options, todo.size());
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
