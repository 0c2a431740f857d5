// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/svg.h"
#include "sim/report/table.h"
#include "sim/report/terminal_chart.h"
#include "sim/report/timeline_writer.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

struct RunSettings {
  std::string trace;
  std::vector<std::string> policies;
  std::vector<std::string> budgets;
  std::string evict_point, fidelity = "all", match, prefill = "whole", layout = "ideal";
  std::string out, csv, lifetimes, timeline, svg;
  EngineOptions engine;
  bool quiet = false;
  bool chart = false, no_chart = false;
};

void apply_fidelity(const std::string& text, EngineOptions& engine) {
  if (text == "all") return;
  if (text == "none") {
    engine.fidelity = false;
    return;
  }
  const std::string digits = text.starts_with("rows=") ? text.substr(5) : "";
  if (digits.empty() || digits.size() > 12 ||
      digits.find_first_not_of("0123456789") != std::string::npos || std::stoll(digits) == 0) {
    throw ConfigError(
        fmt::format("--fidelity: found '{}', expected all, none or rows=K with K >= 1", text));
  }
  engine.fidelity_rows = std::stoll(digits);
}

RunRequest request_of(const RunSettings& s, const Context& context) {
  RunRequest request;
  request.engine = s.engine;
  apply_fidelity(s.fidelity, request.engine);
  request.engine.keep_scores = !s.lifetimes.empty();
  request.engine.keep_reads = s.lifetimes.empty() ? 0 : kKeptReadsBytes;
  request.layerwise = s.prefill == "layerwise";
  request.layout = s.layout;
  (void)parse_layout(s.layout);
  request.specs =
      expand_policies(s.policies.empty() ? std::vector<std::string>{"all"} : s.policies, s.budgets);
  // Of "all", what this trace cannot serve is left out; who names such a policy is told why.
  request.skips = std::all_of(s.policies.begin(), s.policies.end(),
                              [](const std::string& text) { return text == "all"; });
  request.evict_point = s.evict_point;
  if (!s.match.empty()) request.match = parse_match(s.match);
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

void write_files(const RunReport& report, const RunSettings& s) {
  if (!s.lifetimes.empty()) write_lifetimes(report, s.lifetimes);
  if (!s.timeline.empty()) write_timeline(report, s.timeline);
  if (!s.out.empty()) write_file_atomically(s.out, to_json(report).dump(1) + "\n");
  if (!s.csv.empty()) write_file_atomically(s.csv, to_csv(report));
  if (!s.svg.empty()) write_file_atomically(s.svg, memory_svg(report));
}

void print_report(const RunReport& report, const RunSettings& s) {
  TableOptions table;
  table.width = terminal_width();
  table.utf8 = terminal_is_utf8();
  fmt::print("{}", format_table(report, table));
  if (s.chart || (s.svg.empty() && !s.no_chart))
    fmt::print("\n{}", memory_chart(report, std::min(table.width, 100), 16, table.utf8));
  std::fflush(stdout);
  for (const std::string& path : {s.out, s.csv, s.lifetimes, s.timeline, s.svg}) {
    if (!path.empty() && !s.quiet) fmt::print(stderr, "kvspan: wrote {}\n", path);
  }
}

RunReport replay_all(const Trace& trace, const RunRequest& request, bool quiet) {
  Progress progress("replaying", quiet);
  RunWatch watch;
  watch.cancelled = [] { return interrupted(); };
  watch.progress = [&](const RunBatch& /*all*/, double done) { progress(done); };
  watch.begins = [&](const RunOutline& outline) {
    if (!quiet) print_outline(outline);
    (void)interrupted();  // from here on, a signal ends the replay
  };
  return kvspan::run(trace, request, watch);
}

void run(const RunSettings& s, const Context& context) {
  RunRequest request = request_of(s, context);
  const Trace trace = Trace::open(s.trace);
  check_outputs({{"--out", s.out},
                 {"--csv", s.csv},
                 {"--lifetimes", s.lifetimes},
                 {"--timeline", s.timeline},
                 {"--svg", s.svg}},
                trace.tensors().files());
  if (!s.out.empty() || !s.lifetimes.empty() || !s.timeline.empty())
    request.checksum = [&] { return trace.sha256(); };
  const RunReport report = replay_all(trace, request, s.quiet);
  write_files(report, s);
  print_report(report, s);
}

}  // namespace

void add_run(CLI::App& app, const Context& context) {
  auto s = std::make_shared<RunSettings>();
  CLI::App* sub = app.add_subcommand(
      "run", "Replay one trace under many policies, in one pass over its attention");
  sub->add_option("trace", s->trace, "Trace (.safetensors, or the .index.json of a sharded one)")
      ->required();
  sub->add_option("--policy", s->policies,
                  "Policy specification, 'all', or @file.json; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false);
  sub->add_option(
         "--budget", s->budgets,
         "Budgets for policies that have one: tokens, 10%, 64MiB; a list makes one run each")
      ->type_name("B[,B]")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--chunk", s->engine.chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->type_name("C");
  sub->add_option("--prompt", s->engine.prompt,
                  "Where the prompt ends; the rest is treated as decoding")
      ->type_name("N")
      ->check(at_least(1));
  sub->add_option("--evict-at", s->evict_point,
                  "Prompt-end rules act where this span begins; the rest of the prompt is one pass")
      ->type_name("SPAN");
  sub->add_option("--fidelity", s->fidelity, "Rows to measure: all, rows=K in each phase, or none")
      ->type_name("all|rows=K|none");
  sub->add_option("--match", s->match,
                  "Tune every budget to footprint=X, peak_bytes=X or retained=X")
      ->type_name("WHAT=X");
  sub->add_option("--prefill", s->prefill,
                  "When a runtime compresses: after all layers, or layer by layer")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layout, "Storage layout that bytes are counted in")
      ->type_name("NAME");
  sub->add_option("--kv-bytes", s->engine.kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->type_name("B");
  sub->add_option("--threads", s->engine.threads,
                  "Threads; 0: all cores. Results do not depend on them")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--seed", s->engine.seed, "Seed of policies that draw random numbers")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--out", s->out, "Result as JSON")->type_name("FILE");
  sub->add_option("--csv", s->csv, "Result as CSV, one line a run")->type_name("FILE");
  sub->add_option("--lifetimes", s->lifetimes, "Death row of every entry, safetensors")
      ->type_name("FILE");
  sub->add_option("--timeline", s->timeline, "Memory over time at full resolution, safetensors")
      ->type_name("FILE");
  sub->add_option("--svg", s->svg,
                  "Picture: memory over time, and footprint against retained attention")
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
  kvspan run TRACE --policy snapkv --policy h2o --policy tova --match footprint=40%)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
