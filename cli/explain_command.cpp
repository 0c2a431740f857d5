// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/explain_output.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/replay/engine.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/listing.h"
#include "sim/report/past_result.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

// The run that a text names: by its label, by its canonical text, or by what these begin with.
std::size_t find_run(const PastResult& past, const std::string& text) {
  std::vector<std::string> labels;
  std::vector<std::size_t> begins;
  for (std::size_t r = 0; r < past.runs.size(); ++r) {
    const PastResult::Run& run = past.runs[r];
    if (run.label == text || run.spec == text) return r;
    if (run.label.starts_with(text)) begins.push_back(r);
    labels.push_back(run.label);
  }
  if (begins.size() == 1) return begins.front();
  throw ConfigError(fmt::format("the result has {} run{} of '{}', expected one; {}", begins.size(),
                                begins.size() == 1 ? "" : "s", text, nearest_hint(text, labels)));
}

Trace open_trace(const ExplainSettings& s, const PastResult& past) {
  Trace trace = Trace::open(s.trace.empty() ? past.trace_path : s.trace);
  if (!past.trace_sha256.empty() && trace.sha256() != past.trace_sha256) {
    throw TraceError(fmt::format(
        "{}: its checksum is {}..., that of the trace of {} {}...; --trace FILE says where it is",
        trace.name(), trace.sha256().substr(0, 8), s.result, past.trace_sha256.substr(0, 8)));
  }
  return trace;
}

std::vector<std::size_t> chosen_runs(const ExplainSettings& s, const PastResult& past,
                                     ExplainAnswer& answer) {
  std::vector<std::size_t> out;
  const auto add = [&](std::size_t run) {
    const auto at = std::find(out.begin(), out.end(), run);
    if (at != out.end()) return static_cast<std::size_t>(at - out.begin());
    out.push_back(run);
    return out.size() - 1;
  };
  for (const std::string& text : s.policies) add(find_run(past, text));
  for (std::size_t r = 0; r < past.runs.size() && s.policies.empty(); ++r) add(r);
  if (!s.against.empty()) answer.against = add(find_run(past, s.against));
  if (out.size() == 1 && answer.against)
    throw ConfigError("--against: found the run itself, expected another one");
  return out;
}

ExplainAnswer answer(const ExplainSettings& s, const Trace& trace, const PastResult& past) {
  ExplainAnswer out;
  std::vector<RecipeSpec> specs;
  const std::vector<std::size_t> chosen = chosen_runs(s, past, out);
  for (const std::size_t r : chosen) {
    specs.push_back(parse_spec(past.runs[r].spec));
    out.specs.push_back(past.runs[r].spec);
    out.labels.push_back(past.runs[r].label);
    out.notes.push_back(past.runs[r].notes);
    std::erase(out.notes.back(), layer_subset(trace.meta()));  // of bytes, which are not shown
  }
  EngineOptions engine;
  engine.prompt = past.prompt;
  engine.evict_point = past.evict_point;
  engine.chunk = past.chunk;
  engine.kv_bytes = past.kv_bytes;
  engine.fidelity = false;
  engine.keep_reads = kKeptReadsBytes;
  engine.threads = s.options.threads;
  engine.cancelled = s.options.cancelled;
  std::vector<Replay> replays;
  {
    Progress progress("replaying", s.quiet);
    engine.progress = [&](double done) { progress(done); };
    replays = replay(trace, enter(trace, geometry_of(trace, engine), specs).lineup, engine);
  }
  std::vector<const Ledger*> ledgers;
  for (const Replay& replay : replays) ledgers.push_back(&replay.ledger);
  Progress progress("explaining", s.quiet);
  ExplainOptions options = s.options;
  options.progress = [&](double done) { progress(done); };
  out.found = explain(trace, ledgers, options);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const double then = past.runs[chosen[i]].retained;
    const bool whole = ledgers[i]->selected.empty();
    if (whole && std::abs(out.found.runs[i].retained - then) > 1e-4 && !s.quiet) {
      fmt::print(stderr,
                 "kvspan: {} retains {:.4f} % here and {:.4f} % in {}: of a sample, or of another "
                 "version\n",
                 out.labels[i], 100 * out.found.runs[i].retained, 100 * then, s.result);
    }
  }
  return out;
}

void run(ExplainSettings s, const Context& context) {
  if (s.json) s.out = json_output(s.out);
  const PastResult past = read_result(s.result, s.place);
  const Trace trace = open_trace(s, past);
  std::vector<std::filesystem::path> inputs = trace.tensors().files();
  inputs.emplace_back(s.result);
  Outputs outputs({{"--out", s.out}}, inputs);
  (void)interrupted();  // from here on, a signal ends the work
  s.options.cancelled = [] { return interrupted(); };
  const ExplainAnswer found = answer(s, trace, past);
  outputs.write_text("--out",
                     [&] { return file_text(explanation_json(s, context.command, trace, found)); });
  if (!s.json) print_explanation(s, trace, found);
  outputs.finish(s.quiet);
}

}  // namespace

void add_explain(CLI::App& app, const Context& context) {
  auto s = std::make_shared<ExplainSettings>();
  CLI::App* sub = app.add_subcommand(
      "explain", "Why attention was lost: by kind of key, layer, head and row, of a result");
  sub->add_option("result", s->result, "A result of kvspan run --out, whose runs are replayed")
      ->transform(input_file())
      ->required();
  sub->add_option("--policy", s->policies,
                  "A run of the result, by its label or what that begins with; several times: "
                  "several; one alone is told by layer, head and row")
      ->allow_extra_args(false)
      ->type_name("SPEC");
  sub->add_option("--against", s->against, "Another run of it, which the first is compared with")
      ->type_name("SPEC");
  sub->add_option("--place", s->place,
                  "Which result, from 1, of a file of several traces and chunk sizes")
      ->check(at_least(1))
      ->type_name("I");
  sub->add_option("--trace", s->trace, "Where the trace is, if not where it was")
      ->type_name("FILE");
  sub->add_option("--sinks", s->options.sinks, "First tokens that count as sinks")
      ->check(whole_number())
      ->check(at_least(0))
      ->type_name("N");
  sub->add_option("--recent", s->options.recent, "Newest tokens of a row that count as recent")
      ->check(whole_number())
      ->check(at_least(0))
      ->type_name("N");
  sub->add_option("--hitters", s->options.hitters,
                  "Share of the prompt's keys that count as heavy hitters")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("SHARE");
  sub->add_option("--rows", s->shown, "Heads and rows that are shown; JSON has all of them")
      ->check(at_least(1))
      ->type_name("N");
  sub->add_option("--threads", s->options.threads,
                  "Threads; 0: all cores. Results do not depend on them")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--out", s->out, "Everything, as JSON")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--json", s->json, "JSON to standard output, and no tables");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(R"help(
What a row of the full cache attends to and a run no longer holds, or does not read, is lost: to whom did
it go? Examples:
  kvspan run TRACE --policy full --policy snapkv --policy tova --budget 20% --out result.json
  kvspan explain result.json                                  every run, by cause
  kvspan explain result.json --policy snapkv                  by layer, head and row
  kvspan explain result.json --policy snapkv --against tova   where the one loses more than the other
  kvspan explain result.json --json | jq .runs[0].lost)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
