// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/policy_options.h"
#include "cli/replay_device.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/ledger/layouts.h"
#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/massif.h"
#include "sim/report/means.h"
#include "sim/report/perfetto.h"
#include "sim/report/svg.h"
#include "sim/report/table.h"
#include "sim/report/terminal_chart.h"
#include "sim/report/timeline_writer.h"
#include "sim/report/tradeoff_svg.h"
#include "sim/run/regret.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

struct RunSettings {
  std::vector<std::string> traces;
  std::vector<std::int64_t> chunks{0};
  std::vector<std::string> policies;
  std::vector<std::string> budgets;
  std::string evict_point, fidelity = "auto", match, prefill = "whole", layout = "ideal",
                           device = "cpu";
  std::string out, csv, lifetimes, timeline, svg, tradeoff, perfetto, massif, optimum;
  EngineOptions engine;
  double audit = 0;
  bool quiet = false;
  bool regret = false;
  bool chart = false, no_chart = false, no_timeline = false, json = false;
  [[nodiscard]] std::size_t cells() const { return traces.size() * chunks.size(); }
};

RunRequest request_of(const RunSettings& s, const Context& context) {
  RunRequest request;
  request.engine = s.engine;
  apply_fidelity(s.fidelity, request.engine);
  request.engine.keep_scores = !s.lifetimes.empty();
  request.engine.keep_reads = s.lifetimes.empty() ? 0 : kKeptReadsBytes;
  request.layerwise = s.prefill == "layerwise";
  request.layout = s.layout;
  (void)parse_layout(s.layout);
  if (!s.match.empty() && !s.budgets.empty()) {
    throw ConfigError(
        "--match chooses every budget; leave --budget out (a budget inside a specification says "
        "which kind is turned: chunked(snapkv(budget=20%)) or chunked(snapkv(budget=204)))");
  }
  std::vector<std::string> repeated;
  request.specs = expand_policies(s.policies.empty() ? std::vector<std::string>{"all"} : s.policies,
                                  s.budgets, &repeated);
  if (!repeated.empty() && !s.quiet)
    fmt::print(stderr, "kvspan: given more than once, run once: {}\n", fmt::join(repeated, ", "));
  // Of "all", what this trace cannot serve is left out; who names such a policy is told why.
  request.skips = std::all_of(s.policies.begin(), s.policies.end(),
                              [](const std::string& text) { return text == "all"; });
  request.evict_point = s.evict_point;
  if (!s.match.empty()) request.match = parse_match(s.match);
  if (!s.optimum.empty() && !s.regret) {
    throw ConfigError("--optimum writes the plans that --regret compares with; expected both");
  }
  if (s.audit > 0 && s.device == "cpu")
    throw ConfigError("--audit compares a device with the CPU; expected --device, too");
  const MeasuringDevice device = measuring_device(s.device);
  request.engine.scores = device.scores;
  request.audit = s.audit;
  if (!device.instead.empty() && !s.quiet)
    fmt::print(stderr, "kvspan: on the CPU, because {}\n", device.instead);
  request.regret = s.regret;
  request.plans = !s.optimum.empty();
  request.command = context.command;
  request.lifetimes_path = s.lifetimes;
  request.timeline_path = s.timeline;
  return request;
}

void print_outline(const RunOutline& outline) {
  if (!outline.unserved.empty()) {
    fmt::print(stderr, "kvspan: the trace does not hold what they need: {}: left out\n",
               fmt::join(outline.unserved, ", "));
  }
  if (!outline.untunable.empty()) {
    fmt::print(stderr, "kvspan: nothing to tune in {}: left out\n",
               fmt::join(outline.untunable, ", "));
  }
  const int layers = outline.memory.layers_in_flight;
  fmt::print(stderr, "kvspan: {} polic{}, {} of anonymous memory at most, {} layer{} at a time\n",
             outline.policies, outline.policies == 1 ? "y" : "ies",
             human_bytes(outline.memory.bytes), layers, layers == 1 ? "" : "s");
}

// Before the tables: whoever reads those may stop doing so.
void write_files(std::span<const RunReport> reports, const RunSettings& s, Outputs& outputs) {
  const RunReport& first = reports.front();
  const Timelines timelines = s.no_timeline ? Timelines::none : Timelines::all;
  outputs.write("--lifetimes", [&](const auto& path) { write_lifetimes(first, path); });
  outputs.write("--optimum",
                [&](const auto& path) { write_lifetimes(report_of_plans(first), path); });
  outputs.write("--timeline", [&](const auto& path) { write_timeline(first, path); });
  outputs.write_text("--out", [&] {
    return file_text(s.cells() == 1 ? to_json(first, timelines) : to_json(reports, timelines));
  });
  outputs.write_text("--csv", [&] { return to_csv(reports); });
  outputs.write_text("--svg", [&] { return memory_svg(first); });
  outputs.write_text("--tradeoff", [&] { return tradeoff_svg(first); });
  outputs.write_text("--perfetto", [&] { return perfetto_trace(first); });
  outputs.write_text("--massif", [&] { return massif_profile(first); });
}

void print_reports(std::span<const RunReport> reports, const RunSettings& s) {
  TableOptions table;
  table.width = terminal_width();
  table.utf8 = terminal_is_utf8();
  const bool chart = s.chart || (s.cells() == 1 && s.svg.empty() && !s.no_chart);
  for (const RunReport& report : reports) {
    fmt::print("{}{}", &report == &reports.front() ? "" : "\n", format_table(report, table));
    if (chart) fmt::print("\n{}", memory_chart(report, std::min(table.width, 100), 16, table.utf8));
  }
  if (reports.front().trace_path != reports.back().trace_path)
    fmt::print("\n{}", format_means(reports, table));
}

// Whatever the layout of a file adds, it has a number for every entry or row.
void check_space(const TraceMeta& trace, std::size_t runs, const Outputs& outputs) {
  const auto rows = runs * static_cast<std::uint64_t>(trace.tokens);
  const auto heads =
      static_cast<std::uint64_t>(trace.layers) * static_cast<std::uint64_t>(trace.kv_heads);
  outputs.need("--lifetimes", rows * heads * sizeof(std::uint32_t));  // deaths
  outputs.need("--timeline", rows * 5 * sizeof(std::int64_t));        // five series of sums
}

RunReport replay_all(const Trace& trace, const RunRequest& request, const Outputs& outputs,
                     const std::string& what, bool quiet) {
  if (request.engine.scores != nullptr && !trace.is_qkv() && !quiet)
    fmt::print(stderr, "kvspan: on the CPU, because '{}' holds scores, not q, k and v\n",
               trace.name());
  Progress progress(what, quiet);
  RunWatch watch;
  Progress optima("solving", quiet);
  watch.solving = [&](double done) { optima(done); };
  watch.cancelled = [] { return interrupted(); };
  watch.progress = [&](const RunBatch& /*all*/, double done) { progress(done); };
  watch.begins = [&](const RunOutline& outline) {
    check_space(trace.meta(), outline.policies, outputs);
    if (!quiet) print_outline(outline);
    (void)interrupted();  // from here on, a signal ends the replay
  };
  return kvspan::run(trace, request, watch);
}

// Of what only reports other than lifetimes need.
void forget_entries(Ledger& ledger) {
  ledger.death = {};
  ledger.changes = {};
  ledger.reads = {};
  ledger.score = {};
  ledger.rank = {};
}

// Every trace at every chunk size. What was finished when one of them fails is in `reports`.
void replay_cells(const RunSettings& s, const std::vector<Trace>& traces, RunRequest request,
                  const Outputs& outputs, std::vector<RunReport>& reports) {
  for (const Trace& trace : traces) {
    if (!s.out.empty() || !s.lifetimes.empty() || !s.timeline.empty() || !s.optimum.empty())
      request.checksum = [&] { return trace.sha256(); };
    for (const std::int64_t chunk : s.chunks) {
      request.engine.chunk = chunk;
      const std::string what =
          s.cells() == 1 ? "replaying"
                         : fmt::format("replaying {} of {}", reports.size() + 1, s.cells());
      reports.push_back(replay_all(trace, request, outputs, what, s.quiet));
      if (s.cells() == 1) return;
      for (RunResult& run : reports.back().runs) forget_entries(run.ledger);
    }
  }
}

void check_cells(const RunSettings& s) {
  if (std::set(s.chunks.begin(), s.chunks.end()).size() < s.chunks.size())
    throw ConfigError(fmt::format("--chunk {}: a size is given twice", fmt::join(s.chunks, ",")));
  if (s.cells() == 1) return;
  for (const auto& [option, path] :
       {std::pair("--lifetimes", s.lifetimes), std::pair("--timeline", s.timeline),
        std::pair("--optimum", s.optimum), std::pair("--svg", s.svg),
        std::pair("--tradeoff", s.tradeoff), std::pair("--perfetto", s.perfetto),
        std::pair("--massif", s.massif)}) {
    if (path.empty()) continue;
    throw ConfigError(
        fmt::format("{}: found {} traces and {} chunk sizes, expected one of each; --out and --csv "
                    "hold several",
                    option, s.traces.size(), s.chunks.size()));
  }
}

void run(RunSettings s, const Context& context) {
  if (s.json) s.out = json_output(s.out);
  check_cells(s);
  const RunRequest request = request_of(s, context);
  if (!s.massif.empty() && request.specs.size() != 1) {
    throw ConfigError(
        fmt::format("--massif: found {} policies, expected one: the format has no "
                    "place for more",
                    request.specs.size()));
  }
  std::vector<std::filesystem::path> inputs = files_of_policies(s.policies, request.specs);
  std::vector<Trace> traces;
  std::set<std::optional<FileKey>> known;
  for (const std::string& path : s.traces) {
    if (!known.insert(file_key(path)).second)
      throw ConfigError(fmt::format("trace '{}' is given twice", path));
    traces.push_back(Trace::open(path));
    const auto& files = traces.back().tensors().files();
    inputs.insert(inputs.end(), files.begin(), files.end());
  }
  Outputs outputs({{"--out", s.out},
                   {"--csv", s.csv},
                   {"--lifetimes", s.lifetimes, false},
                   {"--optimum", s.optimum, false},
                   {"--timeline", s.timeline, false},
                   {"--svg", s.svg},
                   {"--tradeoff", s.tradeoff},
                   {"--perfetto", s.perfetto},
                   {"--massif", s.massif}},
                  inputs);
  std::vector<RunReport> reports;
  std::exception_ptr stopped;
  try {
    replay_cells(s, traces, request, outputs, reports);
  } catch (const Error&) {
    stopped = std::current_exception();
  }
  if (!reports.empty()) {
    write_files(reports, s, outputs);
    if (!s.json) print_reports(reports, s);
    outputs.finish(s.quiet);
  }
  if (!stopped) return;
  if (!reports.empty()) {
    fmt::print(stderr, "kvspan: {} of {} combinations of trace and chunk are finished and kept\n",
               reports.size(), s.cells());
  }
  std::rethrow_exception(stopped);
}

}  // namespace

void add_run(CLI::App& app, const Context& context) {
  auto s = std::make_shared<RunSettings>();
  CLI::App* sub = app.add_subcommand(
      "run", "Replay traces under many policies, in one pass over the attention of each");
  sub->add_option("trace", s->traces,
                  "Traces (.safetensors, or the .index.json of a sharded one): a table each, and "
                  "their means")
      ->transform(input_file())
      ->required();
  add_policy_options(*sub, s->policies, s->budgets);
  sub->add_option("--chunk", s->chunks,
                  "Prefill chunk, tokens; 0: the prompt is one pass; a list runs all of them")
      ->check(whole_number())
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("C[,C]");
  sub->add_option("--prompt", s->engine.prompt,
                  "Where the prompt ends; the rest is treated as decoding")
      ->type_name("N")
      ->check(at_least(1));
  sub->add_option("--evict-at", s->evict_point,
                  "Prompt-end rules act where this span begins; the rest of the prompt is one pass")
      ->type_name("SPAN");
  sub->add_option("--fidelity", s->fidelity,
                  fmt::format("Rows to measure: all; auto (the default): all decode rows, and of a "
                              "prompt beyond {} rows {}, evenly spread; rows=K in each phase; none",
                              kLongPrompt, kSampledRows))
      ->type_name("auto|all|rows=K|none");
  sub->add_option("--match", s->match,
                  "Tune every budget to footprint=X, peak_bytes=X or retained=X: with retained=90% "
                  "the footprint is the critical footprint at 90 %. full runs along as it is")
      ->type_name("WHAT=X");
  sub->add_flag(
      "--regret", s->regret,
      "Compare each run with the best that any eviction policy could do at its occupancy, "
      "which takes seconds to minutes");
  sub->add_option("--prefill", s->prefill,
                  "When a runtime compresses: after all layers, or layer by layer")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layout,
                  fmt::format("Storage layout that bytes are counted in: {}",
                              fmt::join(standard_layouts(), ", ")))
      ->type_name("NAME");
  sub->add_option("--kv-bytes", s->engine.kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->type_name("B");
  sub->add_option("--threads", s->engine.threads,
                  "Threads; 0: all cores. Results do not depend on them")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option(
         "--device", s->device,
         "Who measures policies that read all they hold, as it was born, in one pass after "
         "each layer: cuda, a GPU; auto, a GPU if there is one; host, the same pass on the "
         "CPU, to compare. The default, cpu, measures on the way")
      ->check(CLI::IsMember({"cpu", "auto", "cuda", "host"}))
      ->type_name("cpu|auto|cuda|host");
  sub->add_option(
         "--audit", s->audit,
         "With --device: so large a share of its rows, drawn by --seed, on the CPU as well; "
         "the largest differences are reported")
      ->check(CLI::Range(1e-9, 1.0))
      ->type_name("SHARE");
  sub->add_option("--seed", s->engine.seed, "Seed of policies that draw random numbers")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--out", s->out, "Result as JSON")->transform(output_file())->type_name("FILE");
  sub->add_flag("--json", s->json, "That JSON to standard output, and no table: for pipes");
  sub->add_flag("--no-timeline", s->no_timeline,
                "Without memory over time in that JSON, which is nine tenths of it");
  sub->add_option("--csv", s->csv, "Result as CSV, one line a run")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--lifetimes", s->lifetimes, "Death row of every entry, safetensors")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option(
         "--optimum", s->optimum,
         "With --regret: death rows of the best plans at each run's occupancy, safetensors, "
         "to be seen beside the runs")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--timeline", s->timeline, "Memory over time at full resolution, safetensors")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--svg", s->svg,
                  "Picture: memory over time, and footprint against retained attention")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--tradeoff", s->tradeoff,
                  "Large picture: footprint against retained attention, every run by name; with "
                  "--regret the frontier that no eviction policy crosses")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--perfetto", s->perfetto,
                  "Memory over time as counters for ui.perfetto.dev, a row a millisecond")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option("--massif", s->massif,
                  "Memory of one policy over time as a heap profile, for massif-visualizer and "
                  "ms_print")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->add_flag("--chart", s->chart, "Terminal chart below the table, also when --svg is given");
  sub->add_flag("--no-chart", s->no_chart, "No terminal chart below the table");
  sub->footer(R"help(
Examples:
  kvspan run TRACE                                        every policy at its default size
  kvspan run TRACE --policy all --budget 10%,25%,50% --out result.json --svg memory.svg
  kvspan run TRACE --policy "h2o(heavy=64,recent=64)" --policy "streaming_llm(sinks=4,window=124)" --prompt 512
  kvspan run TRACE --policy "chunked(snapkv(budget=10%),variant=patched)" --chunk 512
  kvspan run TRACE --policy snapkv --policy h2o --policy tova --match footprint=40%
  kvspan run TRACE --policy all --budget 20% --prompt 512 --regret
  kvspan run TRACE --policy all --budget 10%,20% --device cuda --audit 0.01
  kvspan run TRACE --policy snapkv --json --no-timeline --quiet | jq .runs[0].footprint
  kvspan run TRACE TRACE TRACE --policy full --policy snapkv --budget 10%,20% --chunk 128,512 --csv all.csv)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
