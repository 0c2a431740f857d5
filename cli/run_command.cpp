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
#include "sim/report/report.h"
#include "sim/report/result_files.h"
#include "sim/report/svg.h"
#include "sim/report/terminal_chart.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

struct Settings {
  std::string trace;
  std::vector<std::string> policies;
  std::vector<std::string> budgets;
  std::string evict_at, fidelity = "all", match, prefill = "whole", layout = "ideal";
  std::string out, csv, lifetimes, timeline, svg;
  EngineOptions engine;
  bool quiet = false;
  bool chart = false, no_chart = false;
};

// The row of --evict-at: the begin of a named span, or a row number.
RowIndex evict_row(const Trace& trace, const std::string& text) {
  std::vector<std::string> names;
  for (const Span& span : trace.meta().spans) {
    if (span.name == text) return span.begin;
    names.push_back(span.name);
  }
  if (!text.empty() && text.find_first_not_of("0123456789") == std::string::npos)
    return std::stoll(text);
  throw ConfigError(fmt::format(
      "--evict-at: the trace has no span '{}'; {}", text,
      names.empty() ? "it names no spans; a row number works, too" : nearest_hint(text, names)));
}

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

void run(const Settings& s, const Context& context) {
  EngineOptions options = s.engine;
  apply_fidelity(s.fidelity, options);
  options.keep_scores = !s.lifetimes.empty();
  options.keep_reads = s.lifetimes.empty() ? 0 : kKeptReadsBytes;
  Accounting accounting;
  accounting.kv_bytes = options.kv_bytes;
  accounting.layerwise = s.prefill == "layerwise";
  accounting.layout = s.layout;
  (void)parse_layout(s.layout);
  std::vector<RecipeSpec> specs =
      expand_policies(s.policies.empty() ? std::vector<std::string>{"all"} : s.policies, s.budgets);
  const Trace trace = Trace::open(s.trace);
  check_outputs({{"--out", s.out},
                 {"--csv", s.csv},
                 {"--lifetimes", s.lifetimes},
                 {"--timeline", s.timeline},
                 {"--svg", s.svg}},
                trace.tensors().files());
  if (!s.evict_at.empty()) options.evict_at = evict_row(trace, s.evict_at);
  const Geometry geometry = geometry_of(trace, options);
  // Of "all", what this trace cannot serve is left out; who names such a policy is told why.
  const bool everything = std::all_of(s.policies.begin(), s.policies.end(),
                                      [](const std::string& text) { return text == "all"; });
  std::vector<Policy> policies;
  std::vector<std::string> unserved;
  for (std::size_t p = 0; p < specs.size();) {
    try {
      policies.push_back(make_policy(specs[p], geometry));
      if (everything) check_policy(trace, policies.back(), options);
      ++p;
    } catch (const TraceError&) {
      if (!everything) throw;
      policies.resize(p);
      unserved.push_back(to_text(specs[p]));
      specs.erase(specs.begin() + static_cast<std::ptrdiff_t>(p));
    }
  }
  if (!s.quiet && !unserved.empty()) {
    fmt::print(stderr, "kvspan: the trace does not hold what they need: {}: left out\n",
               fmt::join(unserved, ", "));
  }
  if (!s.match.empty() && everything) {
    std::vector<std::string> left_out;
    for (std::size_t p = specs.size(); p-- > 0;) {
      if (policies[p].knob) continue;
      left_out.insert(left_out.begin(), to_text(specs[p]));
      specs.erase(specs.begin() + static_cast<std::ptrdiff_t>(p));
      policies.erase(policies.begin() + static_cast<std::ptrdiff_t>(p));
    }
    if (!s.quiet && !left_out.empty())
      fmt::print(stderr, "kvspan: nothing to tune in {}: left out\n", fmt::join(left_out, ", "));
  }
  if (!s.quiet) {
    const MemoryPlan plan = plan_memory(trace, policies, options);
    fmt::print(stderr, "kvspan: {} polic{}, {} of anonymous memory at most, {} layer{} at a time\n",
               policies.size(), policies.size() == 1 ? "y" : "ies", human_bytes(plan.bytes),
               plan.layers_in_flight, plan.layers_in_flight == 1 ? "" : "s");
  }
  options.cancelled = [] { return interrupted(); };
  (void)interrupted();

  RunReport report;
  {
    Progress progress("replaying", s.quiet);
    options.progress = [&](double done) { progress(done); };
    report.runs = s.match.empty()
                      ? run_policies(trace, specs, std::move(policies), options, accounting)
                      : run_matched(trace, specs, parse_match(s.match), options, accounting);
  }
  report.command = context.command;
  report.trace_path = s.trace;
  report.trace = trace.meta();
  report.trace.prompt_tokens = geometry.prompt;
  report.chunk = options.chunk;
  report.accounting = accounting;
  report.lifetimes_path = s.lifetimes;
  report.timeline_path = s.timeline;
  if (!s.out.empty() || !s.lifetimes.empty() || !s.timeline.empty())
    report.trace_sha256 = trace.sha256();
  if (!s.lifetimes.empty()) write_lifetimes(report, s.lifetimes);
  if (!s.timeline.empty()) write_timeline(report, s.timeline);
  if (!s.out.empty()) write_file_atomically(s.out, to_json(report).dump(1) + "\n");
  if (!s.csv.empty()) write_file_atomically(s.csv, to_csv(report));
  if (!s.svg.empty()) write_file_atomically(s.svg, memory_svg(report));

  const int width = terminal_width();
  TableOptions table;
  table.width = width;
  table.utf8 = terminal_is_utf8();
  fmt::print("{}", format_table(report, table));
  if (s.chart || (s.svg.empty() && !s.no_chart))
    fmt::print("\n{}", memory_chart(report, std::min(width, 100), 16, table.utf8));
  std::fflush(stdout);
  for (const std::string& path : {s.out, s.csv, s.lifetimes, s.timeline, s.svg}) {
    if (!path.empty() && !s.quiet) fmt::print(stderr, "kvspan: wrote {}\n", path);
  }
}

}  // namespace

void add_run(CLI::App& app, const Context& context) {
  auto s = std::make_shared<Settings>();
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
  sub->add_option("--evict-at", s->evict_at,
                  "Prompt-end rules act where this span begins; the rest of the prompt is one pass")
      ->type_name("SPAN");
  sub->add_option("--fidelity", s->fidelity, "Rows to measure: all, rows=K in each phase, or none")
      ->type_name("all|rows=K|none");
  sub->add_option("--match", s->match, "Tune every budget to footprint=X, peak_bytes=X or mass=X")
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
      ->type_name("S");
  sub->add_option("--out", s->out, "Result as JSON")->type_name("FILE");
  sub->add_option("--csv", s->csv, "Result as CSV, one line a run")->type_name("FILE");
  sub->add_option("--lifetimes", s->lifetimes, "Death row of every entry, safetensors")
      ->type_name("FILE");
  sub->add_option("--timeline", s->timeline, "Memory over time at full resolution, safetensors")
      ->type_name("FILE");
  sub->add_option("--svg", s->svg, "Picture: memory over time, and footprint against mass")
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
