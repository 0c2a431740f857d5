// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/unit.h"

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/run/regret.h"
#include "sim/run/run.h"
#include "sim/sweep/figures.h"
#include "sim/sweep/records.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
using Status = CellRecord::Status;

class UnitReplay {
 public:
  UnitReplay(const UnitRun& run, MemoryGate& gate)
      : run_(run), gate_(gate), setting_(run.grid.settings[run.unit.setting]) {
    for (const std::size_t cell : run.cells) {
      if (std::find(specs_.begin(), specs_.end(), cell_at(cell).spec) == specs_.end())
        specs_.push_back(cell_at(cell).spec);
    }
  }

  std::vector<json> records() {
    try {
      prepare();
    } catch (const Error& error) {
      for (const std::size_t spec : specs_) fail(spec, Status::failed, error.what());
      return std::move(records_);
    }
    for (const std::size_t spec : specs_) enter_one(spec);
    if (!entered_.empty()) replay(0, entered_.size());
    return std::move(records_);
  }

 private:
  [[nodiscard]] const Cell& cell_at(std::size_t cell) const { return run_.grid.cells[cell]; }

  void prepare() {
    trace_ = std::make_unique<const Trace>(Trace::open(run_.plan.traces[setting_.trace].path));
    options_ = replay_options(*trace_, setting_, run_.plan.config);
    options_.threads = run_.threads;
    options_.cancelled = run_.cancelled;
    entrants_.lineup.geometry = geometry_of(*trace_, options_);
  }

  void enter_one(std::size_t spec) {
    if (run_.cancelled && run_.cancelled()) throw Interrupted();
    const SweepSpec& wanted = run_.plan.specs[spec];
    try {
      const auto reason = why_not_enter(*trace_, parse_spec(wanted.text), entrants_);
      if (!reason)
        entered_.push_back(spec);
      else
        fail(spec, wanted.from_all ? Status::left_out : Status::failed, *reason);
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& error) {
      fail(spec, Status::failed, error.what());
    }
  }

  // Policies [begin, end) of those that entered.
  void replay(std::size_t begin, std::size_t end) {
    const Entrants part = entrants_.slice(begin, end);
    const std::int64_t bytes = memory_of(part);
    const std::size_t middle = begin + (end - begin) / 2;
    if (bytes > gate_.bytes() && middle > begin) {
      replay(begin, middle);
      replay(middle, end);
      return;
    }
    if (run_.planned) run_.planned(bytes);
    try {
      gate_.with(bytes, [&] { finish(part, begin); });
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& error) {
      break_down(begin, end, error.what());
    } catch (const std::bad_alloc&) {
      break_down(begin, end, "out of memory");
    }
  }

  [[nodiscard]] bool regrets() const { return run_.plan.config.regret && trace_->is_qkv(); }

  [[nodiscard]] std::int64_t memory_of(const Entrants& part) const {
    const std::int64_t replayed = plan_memory(*trace_, part.lineup, options_).bytes;
    std::int64_t solved = 0;
    for (const Requirements& one : part.lineup.requirements) {
      if (regrets()) solved = std::max(solved, regret_memory(one.passes.ends, options_));
    }
    return replayed + solved;
  }

  // One of several is at fault, and the others are not to suffer.
  void break_down(std::size_t begin, std::size_t end, const std::string& why) {
    if (end - begin == 1) return fail(entered_[begin], Status::failed, why);
    replay(begin, begin + (end - begin) / 2);
    replay(begin + (end - begin) / 2, end);
  }

  void finish(const Entrants& part, std::size_t begin) {
    const auto share = static_cast<double>(part.specs.size()) / static_cast<double>(specs_.size());
    const PassPlan& passes = part.lineup.requirements.front().passes;
    const double replay_share =
        regrets() ? 1 / (1 + cost_of_regrets(passes.tokens, std::ssize(passes.ends))) : 1;
    const auto show = [&](double from, double part_of_it) {
      options_.progress = [this, before = replayed_ + share * from,
                           all = share * part_of_it](double done) {
        if (run_.progress) run_.progress(before + all * done);
      };
    };
    show(0, replay_share);
    RunReport about;
    about.trace = trace_->meta();
    about.accounting = accounting_of(0);
    std::vector<RunResult> runs = run_policies(*trace_, part, options_, about.accounting);
    if (regrets()) {
      std::vector<char> inside;
      for (const Policy& policy : part.lineup.policies)
        inside.push_back(has_regret(policy) ? 1 : 0);
      show(replay_share, 1 - replay_share);
      add_regrets(*trace_, options_, inside, runs);
    }
    std::vector<json> records;
    for (std::size_t p = 0; p < runs.size(); ++p) {
      for (std::size_t c = 0; c < run_.grid.countings.size(); ++c) {
        const std::optional<std::uint64_t> id = wanted(entered_[begin + p], c);
        if (!id) continue;
        about.accounting = accounting_of(c);
        if (c > 0) runs[p].metrics = compute_metrics(runs[p].ledger, about.accounting);
        const json figures = figures_of(about, runs[p], part.specs[p], part.lineup.policies[p]);
        records.push_back(cell_record(*id, Status::done, figures.dump()));
      }
    }
    std::move(records.begin(), records.end(), std::back_inserter(records_));
    replayed_ += share;
  }

  [[nodiscard]] Accounting accounting_of(std::size_t counting) const {
    const Counting& how = run_.grid.countings[counting];
    return {setting_.kv_bytes, how.prefill == "layerwise", how.layout};
  }

  [[nodiscard]] std::optional<std::uint64_t> wanted(std::size_t spec, std::size_t counting) const {
    for (const std::size_t cell : run_.cells) {
      if (cell_at(cell).spec == spec && cell_at(cell).counting == counting) return cell_at(cell).id;
    }
    return std::nullopt;
  }

  void fail(std::size_t spec, Status status, const std::string& why) {
    for (const std::size_t cell : run_.cells) {
      if (cell_at(cell).spec == spec)
        records_.push_back(cell_record(cell_at(cell).id, status, one_line(why)));
    }
  }

  const UnitRun& run_;
  MemoryGate& gate_;
  const Setting& setting_;
  std::vector<std::size_t> specs_;    // of the wanted cells, in the plan
  std::vector<std::size_t> entered_;  // of entrants_, in the plan
  std::unique_ptr<const Trace> trace_;
  EngineOptions options_;
  Entrants entrants_;
  std::vector<json> records_;
  double replayed_ = 0;
};

}  // namespace

void MemoryGate::with(std::int64_t bytes, const std::function<void()>& work) {
  {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [&] { return held_ == 0 || held_ + bytes <= bytes_; });
    held_ += bytes;
  }
  try {
    work();
  } catch (...) {
    give_back(bytes);
    throw;
  }
  give_back(bytes);
}

void MemoryGate::give_back(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  held_ -= bytes;
  freed_.notify_all();
}

EngineOptions replay_options(const Trace& trace, const Setting& setting, const Config& config) {
  EngineOptions options;
  options.prompt = setting.prompt;
  options.chunk = setting.chunk;
  options.kv_bytes = setting.kv_bytes;
  options.seed = setting.seed;
  apply_fidelity(config.fidelity, options);
  apply_sample(config.sample, options);
  options.sample.seed = setting.seed;
  if (!setting.evict_at.empty()) options.evict_point = evict_row(trace, setting.evict_at);
  return options;
}

std::vector<json> run_unit(const UnitRun& run, MemoryGate& gate) {
  return UnitReplay(run, gate).records();
}

}  // namespace kvspan::sweep
