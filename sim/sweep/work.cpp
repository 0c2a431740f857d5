// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/work.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/replay/memory_plan.h"
#include "sim/sweep/unit.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class Work {
 public:
  explicit Work(const Workplace& at)
      : at_(at),
        todo_(at.todo),
        gate_(memory_of(at.options)),
        counts_(count_cells(at.grid, at.records, at.options.shard)),
        shares_(at.todo.size(), 0.0) {
    counts_.failed = counts_.left = 0;  // which is what is to be done
    for (const Todo& one : todo_) {
      if (one.cells.empty()) continue;
      cost_ += one.unit->cost;
      counts_.left += one.cells.size();
    }
  }

  // Errors: what the first thread that failed met.
  void run() {
    if (counts_.left == 0) return;
    const Crew crew = crew_of(at_.options, todo_);
    show();
    std::vector<std::thread> threads;
    for (std::size_t job = 1; job < crew.jobs; ++job)
      threads.emplace_back([&] { work(crew.threads); });
    work(crew.threads);
    for (std::thread& thread : threads) thread.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  [[nodiscard]] bool stopped() const {
    return stop_ || (at_.watch.cancelled && at_.watch.cancelled());
  }

  // The next unit, of this process or of the team.
  std::size_t take() {
    if (at_.options.team == nullptr) return next_++;
    for (;;) {
      const auto i = static_cast<std::size_t>(at_.options.team->take(1));
      if (i >= todo_.size()) return i;
      if (todo_[i].cells.empty()) continue;
      follow(i);
      return i;
    }
  }

  void work(int threads) {
    try {
      for (std::size_t i = take(); i < todo_.size(); i = take()) {
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
    const UnitRun run{at_.plan,
                      at_.grid,
                      *todo.unit,
                      todo.cells,
                      threads,
                      [&, i](double share) { show(i, share); },
                      [this] { return stopped(); },
                      {}};
    std::vector<json> records = run_unit(run, gate_);
    records.push_back(
        work_record({seconds_since_1970(), steady_seconds() - begin, todo.unit->cost}));
    at_.journal.append(records);
    {
      const std::lock_guard lock(mutex_);
      for (const json& record : records) {
        add_records(journal_line(record), at_.records);
        count(record);
      }
    }
    show(i, 1);
  }

  void count(const json& record) {
    const auto status = record.find("status");
    if (status == record.end() || at_.options.team != nullptr) return;
    --counts_.left;
    if (*status == name_of(CellRecord::Status::done)) ++counts_.done;
    if (*status == name_of(CellRecord::Status::left_out)) ++counts_.left_out;
    if (*status == name_of(CellRecord::Status::failed)) ++counts_.failed;
  }

  // Units before the one that was taken have been taken by somebody of the team.
  void follow(std::size_t i) {
    const std::lock_guard lock(mutex_);
    for (; followed_ < i; ++followed_) {
      const Todo& other = todo_[followed_];
      if (other.cells.empty()) continue;
      done_ += (1 - shares_[followed_]) * other.unit->cost;
      shares_[followed_] = 1;
      counts_.done += other.cells.size();
      counts_.left -= other.cells.size();
    }
    show();
  }

  void show(std::size_t i, double share) {
    const std::lock_guard lock(mutex_);
    if (share > shares_[i]) {
      done_ += (share - shares_[i]) * todo_[i].unit->cost;
      shares_[i] = share;
    }
    show();
  }
  void show() const {
    if (at_.watch.progress) at_.watch.progress({counts_, std::min(1.0, done_ / cost_)});
  }

  const Workplace& at_;
  const std::vector<Todo>& todo_;
  MemoryGate gate_;
  Counts counts_;
  std::vector<double> shares_;  // of units that are done
  double cost_ = 0, done_ = 0;
  std::atomic<std::size_t> next_{0};
  std::size_t followed_ = 0;  // units of the team
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

std::vector<Todo> todo_of(const Grid& grid, const Records& records, const SweepOptions& options) {
  std::vector<Todo> out;
  for (const Unit& unit : grid.units) {
    if (!options.shard.has(unit)) continue;
    Todo todo{&unit, {}};
    for (const std::size_t cell : unit.cells) {
      const auto found = records.cells.find(grid.cells[cell].id);
      if (found == records.cells.end() || found->second.status == CellRecord::Status::failed)
        todo.cells.push_back(cell);
    }
    if (!todo.cells.empty() || options.team != nullptr) out.push_back(std::move(todo));
  }
  return out;
}

Crew crew_of(const SweepOptions& options, const std::vector<Todo>& todo) {
  const auto processes =
      static_cast<std::size_t>(options.team == nullptr ? 1 : options.team->size());
  const auto all = static_cast<std::size_t>(
      std::ranges::count_if(todo, [](const Todo& one) { return !one.cells.empty(); }));
  const std::size_t units = (all + processes - 1) / processes;
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
  return static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE) / 2 /
         static_cast<std::int64_t>(options.processes_here);
}

void do_units(const Workplace& at) { Work(at).run(); }

}  // namespace kvspan::sweep
