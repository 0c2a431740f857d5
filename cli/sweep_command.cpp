// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/commands.h"
#include "cli/policy_options.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"
#include "sim/sweep/mpi/join.h"
#include "sim/sweep/sweep.h"

namespace kvspan::cli {
namespace {

using sweep::Config;
using sweep::Counts;
using sweep::SweepFolder;

constexpr int kSomeFailed = 3;

struct SweepSettings {
  std::vector<std::string> inputs;  // one configuration, or traces
  std::string out, shard = "auto", memory;
  Config config;
  sweep::SweepOptions options;
  double sample_seconds = 10;
  bool list = false, dry_run = false, quiet = false;
};

// What the program ends with, apart from errors of its own.
class Ends : public Error {
 public:
  using Error::Error;
};

bool is_configuration(const std::string& path) {
  return path.ends_with(".json") && !path.ends_with(".index.json");
}

Config config_of(const SweepSettings& s, const CLI::App& sub) {
  const bool file = std::any_of(s.inputs.begin(), s.inputs.end(),
                                [](const auto& p) { return is_configuration(p); });
  if (!file) {
    Config config = s.config;
    config.traces = s.inputs;
    check_options(config);
    return config;
  }
  if (s.inputs.size() != 1) {
    throw ConfigError(fmt::format("found {} inputs, expected one configuration, or traces: {}",
                                  s.inputs.size(), fmt::join(s.inputs, " ")));
  }
  for (const char* option :
       {"--policy", "--budget", "--chunk", "--prompt", "--evict-at", "--fidelity", "--kv-bytes",
        "--prefill", "--layout", "--seed", "--sample", "--regret"}) {
    if (sub.count(option) > 0) {
      throw ConfigError(
          fmt::format("{} belongs into {}, which says what is swept", option, s.inputs.front()));
    }
  }
  const MappedFile mapped = map_file(s.inputs.front());
  return sweep::parse_config(
      {reinterpret_cast<const char*>(mapped.bytes.data()), mapped.bytes.size()},
      path_text(s.inputs.front()));
}

std::string counts_text(const Counts& counts) {
  return fmt::format("{} cells: {} done, {} left out, {} failed, {} left", counts.all(),
                     counts.done, counts.left_out, counts.failed, counts.left);
}

void print_list(const SweepSettings& s, const Config& config) {
  const sweep::SweepOutline outline = sweep::outline_sweep(config, s.out, s.options, 0);
  for (const sweep::Unit& unit : outline.grid.units) {
    if (!s.options.shard.has(unit)) continue;
    for (const std::size_t at : unit.cells) {
      const sweep::Cell& cell = outline.grid.cells[at];
      const sweep::Setting& setting = outline.grid.settings[cell.setting];
      const sweep::Counting& counting = outline.grid.countings[cell.counting];
      fmt::print("{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n", sweep::id_text(cell.id),
                 sweep::id_text(unit.id), one_line(outline.plan.traces[setting.trace].path),
                 setting.prompt, one_line(setting.evict_at), setting.chunk, setting.kv_bytes,
                 setting.seed, counting.prefill, counting.layout,
                 one_line(outline.plan.specs[cell.spec].text));
    }
  }
}

void print_outline(const SweepSettings& s, const Config& config) {
  sweep::SweepWatch watch;
  watch.cancelled = [] { return interrupted(); };
  const sweep::SweepOutline outline =
      sweep::outline_sweep(config, s.out, s.options, s.sample_seconds, watch);
  fmt::print("{}\n", counts_text(outline.cells));
  fmt::print("replays left: {} of {} traces, {} policies\n", outline.replays,
             outline.plan.traces.size(), outline.plan.specs.size());
  fmt::print("memory: {} of anonymous memory at most; the largest of {} sampled replays wants {}\n",
             human_bytes(outline.memory_limit), outline.sampled, human_bytes(outline.memory_bytes));
  if (outline.seconds)
    fmt::print("time: about {}, measured on these\n", time_text(*outline.seconds));
}

// Reasons of cells that are not done, with how many have each; budgets of a policy share one.
void print_reasons(const SweepFolder& folder, sweep::CellRecord::Status status, std::FILE* where) {
  std::map<std::string, std::size_t> reasons;
  for (const sweep::Cell& cell : folder.grid.cells) {
    const auto found = folder.records.cells.find(cell.id);
    if (found == folder.records.cells.end() || found->second.status != status) continue;
    const std::string& text = found->second.text;
    const std::string& spec = folder.plan.specs[cell.spec].text;
    const std::size_t reason = std::min(text.find(" cannot run on "), text.size());
    ++reasons[reason == text.size() ? text : spec.substr(0, spec.find('(')) + text.substr(reason)];
  }
  constexpr std::size_t kMost = 20;
  std::size_t shown = 0;
  for (const auto& [reason, count] : reasons) {
    if (++shown > kMost) break;
    fmt::print(where, "  {} cell{}: {}\n", count, count == 1 ? "" : "s", one_line(reason));
  }
  if (reasons.size() > kMost) fmt::print(where, "  and {} more reasons\n", reasons.size() - kMost);
}

void finish(const SweepSettings& s, const Counts& counts) {
  if (!s.quiet) {
    fmt::print(stderr, "kvspan: {}; in {}\n", counts_text(counts), path_text(s.out));
  }
  if (counts.failed == 0) return;
  print_reasons(sweep::open_sweep(s.out), sweep::CellRecord::Status::failed, stderr);
  throw Ends(fmt::format("{} of {} cells failed; the same command tries them again", counts.failed,
                         counts.all()),
             kSomeFailed);
}

const char* environment(const char* name) { return std::getenv(name); }

// The part of the sweep that is this process's, or its team's. The first one speaks for a team.
std::unique_ptr<sweep::Team> find_part(SweepSettings& s) {
  sweep::Joined joined;
  sweep::Shard& shard = s.options.shard;
  shard = sweep::parse_shard(s.shard, environment);
  if (s.shard == "auto") s.options.processes_here = sweep::launch_of(environment).here;
  if (s.shard == "auto" && !s.list && !s.dry_run) joined = sweep::join_mpi(environment);
  if (joined.team) {
    shard = sweep::launch_of(environment).array;
    s.options.team = joined.team.get();
    s.quiet = s.quiet || joined.team->rank() > 0;
    if (!s.quiet)
      fmt::print(stderr, "kvspan: {} processes ({})\n", joined.team->size(), joined.library);
  }
  if (!shard.source.empty() && !s.quiet) {
    fmt::print(stderr, "kvspan: part {} of {} ({}{}{})\n", shard.index + 1, shard.count,
               shard.source, joined.why_not.empty() ? "" : "; no shared counter: ", joined.why_not);
  }
  return std::move(joined.team);
}

void run(SweepSettings s, const CLI::App& sub) {
  if (s.inputs.empty()) throw ConfigError("sweep: expected a configuration, or traces");
  const Config config = config_of(s, sub);
  if (!s.memory.empty()) s.options.memory_bytes = parse_bytes(s.memory, "--memory");
  if (s.out.empty() && !s.list && !s.dry_run)
    throw ConfigError("--out: expected a folder for the results");
  const std::unique_ptr<sweep::Team> team = find_part(s);
  if (s.list) return print_list(s, config);
  if (s.dry_run) return print_outline(s, config);
  const bool silent = team && team->rank() > 0;
  terminated_too();  // from here on, both signals end the replays
  Progress progress("sweep", s.quiet);
  sweep::SweepWatch watch;
  watch.cancelled = [] { return interrupted(); };
  watch.progress = [&](const sweep::SweepProgress& now) {
    const Counts& c = now.cells;
    progress(now.done, fmt::format("sweep, {} of {} cells", c.all() - c.left, c.all()));
  };
  try {
    const Counts counts = sweep::run_sweep(config, s.out, s.options, watch);
    if (!silent) finish(s, counts);
  } catch (const Interrupted&) {
    if (silent) return;
    throw Ends("stopped; what was finished is kept, and the same command goes on", kResumable);
  }
}

// How long the rest takes at the pace of the last hour of work, all processes together.
std::optional<double> time_left(const SweepFolder& folder) {
  constexpr double kHour = 3600;
  double left = 0;
  for (const sweep::Unit& unit : folder.grid.units) {
    const auto missing = std::count_if(unit.cells.begin(), unit.cells.end(), [&](std::size_t cell) {
      return !folder.records.cells.contains(folder.grid.cells[cell].id);
    });
    left += unit.cost * static_cast<double>(missing) / static_cast<double>(unit.cells.size());
  }
  double last = 0, first = 0, cost = 0;
  for (const sweep::WorkRecord& work : folder.records.work) last = std::max(last, work.ended);
  first = last;
  for (const sweep::WorkRecord& work : folder.records.work) {
    if (work.ended < last - kHour) continue;
    first = std::min(first, work.ended - work.seconds);
    cost += work.cost;
  }
  if (left <= 0 || cost <= 0 || last <= first) return std::nullopt;
  return left / (cost / (last - first));
}

void print_status(const std::string& path) {
  const SweepFolder folder = sweep::open_sweep(path);
  const Counts counts = count_cells(folder.grid, folder.records);
  fmt::print("{}\n", counts_text(counts));
  if (counts.failed > 0) {
    fmt::print("failed:\n");
    print_reasons(folder, sweep::CellRecord::Status::failed, stdout);
  }
  if (counts.left_out > 0) {
    fmt::print("left out, because a trace cannot serve them:\n");
    print_reasons(folder, sweep::CellRecord::Status::left_out, stdout);
  }
  if (const auto seconds = time_left(folder))
    fmt::print("time left: about {}, at the pace of the last hour of work\n", time_text(*seconds));
  fmt::print("journals: {}, {} damaged line{}\n", folder.records.journals, folder.records.damaged,
             folder.records.damaged == 1 ? "" : "s");
  if (counts.left > 0) throw Ends(fmt::format("{} cells are left", counts.left), kResumable);
  if (counts.failed > 0) throw Ends(fmt::format("{} cells failed", counts.failed), kSomeFailed);
}

void add_axes(CLI::App* sub, Config& config) {
  add_policy_options(*sub, config.policies, config.budgets);
  sub->add_option("--chunk", config.chunks, "Prefill chunks, tokens; 0: the prompt is one pass")
      ->check(whole_number())
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("C[,C]");
  sub->add_option("--prompt", config.prompts, "Where the prompt ends; 0: as the trace says")
      ->check(whole_number())
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("N[,N]");
  sub->add_option("--evict-at", config.evict_at, "Prompt-end rules act where this span begins")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("SPAN[,SPAN]");
  sub->add_option("--fidelity", config.fidelity, "Rows to measure, as of kvspan run")
      ->type_name("auto|all|rows=K|none");
  sub->add_option("--sample", config.sample,
                  "Measure attention in K random rows of each phase, KV heads or layers only: "
                  "estimates with 95 % intervals; decisions and memory stay exact")
      ->type_name("rows=K|heads=K|layers=K");
  sub->add_flag(
      "--regret", config.regret,
      "Compare each cell with the best that any eviction policy could do at its occupancy, "
      "as kvspan run --regret; nothing of score traces");
  sub->add_option("--kv-bytes", config.kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("B[,B]");
  sub->add_option("--prefill", config.prefill, "When a runtime compresses")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("whole|layerwise");
  sub->add_option("--layout", config.layouts, "Storage layouts that bytes are counted in")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("NAME[,NAME]");
  sub->add_option("--seed", config.seeds, "Seeds of policies that draw random numbers")
      ->check(a_seed())
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("S[,S]");
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto s = std::make_shared<SweepSettings>();
  CLI::App* sub = app.add_subcommand(
      "sweep", "Every combination of traces, prompts, chunks, policies and budgets; resumable");
  sub->add_option("input", s->inputs,
                  "A configuration (.json; its schema: sim/sweep/config.schema.json), or traces "
                  "and patterns of traces");
  sub->add_option("--out", s->out, "Folder of the results; one that is there is continued")
      ->type_name("DIR");
  add_axes(sub, s->config);
  sub->add_flag(
      "--list", s->list,
      "Print the cells and run nothing: id, unit, trace, prompt, evict point, chunk, bytes "
      "of an element, seed, prefill, layout, policy");
  sub->add_flag("--dry-run", s->dry_run,
                "Print cells, replays, memory, and a time estimated from a sample; run nothing");
  sub->add_option("--seconds", s->sample_seconds, "Seconds that the sample of --dry-run may take")
      ->check(at_least(0))
      ->type_name("SECONDS");
  sub->add_option("--max-cells", s->options.most_cells, "Refuse more cells than this")
      ->check(at_least(1))
      ->type_name("N");
  sub->add_option("--shard", s->shard,
                  "Do part i of n, from 1; auto: processes of mpirun share a counter, others do as "
                  "PMI, or a step or array of Slurm says")
      ->type_name("i/n|auto");
  sub->add_option(
         "--memory", s->memory,
         "Anonymous memory of all replays together; default: half of the machine's, of which "
         "processes that were started together share alike")
      ->type_name("SIZE");
  sub->add_option("--threads", s->options.threads, "Threads; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(R"help(
Examples:
  kvspan sweep TRACE TRACE --policy all --budget 5%,10%,20%,40% --chunk 0,512 --out results
  kvspan sweep "traces/*.safetensors" --policy snapkv --policy h2o --budget 10%,20% --prompt 0,512 --out results
  kvspan sweep grid.json --dry-run
  kvspan sweep grid.json --out results --shard 3/16
  mpirun -n 64 --map-by numa --bind-to numa kvspan sweep grid.json --out results
  kvspan sweep status results
  kvspan report results

A run that was stopped or killed goes on when the same command is given again. Exit codes: 0 all done,
3 some cells failed, 75 stopped by SIGTERM or Ctrl-C.)help");

  auto folder = std::make_shared<std::string>();
  CLI::App* status = sub->add_subcommand("status", "What is done, failed and left; 0, 3 or 75");
  status->add_option("folder", *folder, "Folder of a sweep")->required();
  status->callback([folder] { print_status(*folder); });
  sub->callback([s, sub, status] {
    if (!status->parsed()) run(*s, *sub);
  });
}

}  // namespace kvspan::cli
