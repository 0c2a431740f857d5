// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/optimum_output.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/optimum/heads.h"
#include "sim/optimum/reference_flow.h"
#include "sim/policy/registry.h"
#include "sim/policy/spec.h"
#include "sim/replay/requirements.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/regret.h"

namespace kvspan::cli {
namespace {

// Entries of a head, as a policy would count them.
std::int64_t entries_of(const std::string& text, std::int64_t prompt, std::int64_t tokens) {
  const Amount amount = Amount::parse(text, "--budget");
  if (amount.kind == Amount::Kind::bytes) {
    throw ConfigError(fmt::format(
        "--budget: found '{}', expected tokens (94) or a share of the prompt (5%)", text));
  }
  const std::int64_t entries =
      amount.kind == Amount::Kind::share ? amount.share_of(prompt) : amount.mantissa;
  if (entries > tokens) {
    throw ConfigError(fmt::format(
        "--budget: found {} entries, expected at most the {} of the trace", entries, tokens));
  }
  return entries;
}

// Budgets ascending, each once, with their texts.
void apply_budgets(const OptimumSettings& s, std::int64_t tokens, OptimumAnswer& answer,
                   optimum::SurveyRequest& request) {
  std::vector<std::pair<std::int64_t, std::string>> sorted;
  for (const std::string& text : s.budgets)
    sorted.emplace_back(entries_of(text, answer.prompt, tokens), text);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [entries, text] : sorted) {
    if (!request.budgets.empty() && request.budgets.back() == entries) continue;
    request.budgets.push_back(entries);
    answer.budget_texts.push_back(text);
  }
}

// A run for each budget, all of whose entries live to the end.
RunReport report_of_budgets(const OptimumSettings& s, const Trace& trace, const Geometry& geometry,
                            const OptimumAnswer& answer) {
  const Policy full = make_policy("full", geometry);
  RunReport report;
  report.trace_path = trace.name();
  report.trace_sha256 = trace.sha256();
  report.trace = trace.meta();
  report.trace.prompt_tokens = geometry.prompt;
  report.chunk = geometry.chunk;
  for (const std::string& budget : answer.budget_texts) {
    report.runs.push_back(run_of_plan(
        fmt::format("{}(budget={})", s.value == "error" ? "optimum_error" : "optimum", budget),
        ledger_of_plan(trace.meta(), passes_of(full, geometry), trace.meta().kv_heads,
                       full.representations.front())));
  }
  return report;
}

void run(const OptimumSettings& s, const Context& context) {
  if (s.value == "error" && (s.shared || s.reference)) {
    throw ConfigError(
        fmt::format("{}: found --value error, expected --value mass, of which it is another bound",
                    s.shared ? "--shared" : "--reference"));
  }
  const Trace trace = Trace::open(s.trace);
  EngineOptions engine;
  engine.prompt = s.prompt;
  engine.chunk = s.chunk;
  const Geometry geometry = geometry_of(trace, engine);
  OptimumAnswer answer;
  answer.prompt = geometry.prompt;
  optimum::SurveyRequest request;
  request.ends =
      make_passes(geometry.tokens, geometry.prompt, geometry.evict_point, geometry.chunk).ends;
  answer.passes = static_cast<RowIndex>(request.ends.size());
  request.counts.assign(index(geometry.tokens), 1);
  if (s.rows == "decode") request.counts = optimum::judged_rows(request.counts, geometry.prompt);
  request.shared = s.shared;
  request.reference = s.reference;
  request.threads = s.threads;
  apply_budgets(s, geometry.tokens, answer, request);
  Outputs outputs({{"--out", s.out}, {"--lifetimes", s.lifetimes, false}}, trace.tensors().files());
  RunReport plans;
  if (!s.lifetimes.empty()) {
    plans = report_of_budgets(s, trace, geometry, answer);
    request.use_deaths = [&](std::size_t budget, const StoredHead& head,
                             std::span<const RowIndex> deaths) {
      Ledger& ledger = plans.runs[budget].ledger;
      std::copy(
          deaths.begin(), deaths.end(),
          ledger.death.begin() + static_cast<std::ptrdiff_t>(ledger.offset(head.layer, head.head)));
    };
  }
  {
    Progress progress("solving", s.quiet);
    request.watch.progress = [&](double done) { progress(done); };
    request.watch.cancelled = [] { return interrupted(); };
    (void)interrupted();  // from here on, a signal ends the work
    if (s.value == "error")
      answer.errors = optimum::error_survey(trace, request);
    else
      answer.survey = optimum::survey(trace, request);
  }
  outputs.write_text("--out",
                     [&] { return file_text(optimum_json(s, context.command, trace, answer)); });
  outputs.write("--lifetimes", [&](const auto& path) { write_lifetimes(plans, path); });
  (s.value == "error" ? print_errors : print_optimum)(s, trace, answer);
  outputs.finish(s.quiet);
}

}  // namespace

void add_optimum(CLI::App& app, const Context& context) {
  auto s = std::make_shared<OptimumSettings>();
  CLI::App* sub = app.add_subcommand(
      "optimum", "The most attention that any eviction policy could retain, exactly");
  sub->add_option("trace", s->trace, "Trace (.safetensors, or the .index.json of a sharded one)")
      ->transform(input_file())
      ->required();
  sub->add_option("--budget", s->budgets,
                  "Entries that each head may hold after every pass: tokens, or a share of the "
                  "prompt; default 5%,10%,20%,40%")
      ->type_name("B[,B]")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--chunk", s->chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->check(whole_number())
      ->type_name("C");
  sub->add_option("--prompt", s->prompt, "Where the prompt ends; the rest is treated as decoding")
      ->type_name("N")
      ->check(at_least(1));
  sub->add_option("--rows", s->rows,
                  "Rows whose attention counts: decode (all, where there are none), or all")
      ->check(CLI::IsMember({"decode", "all"}))
      ->type_name("decode|all");
  sub->add_option("--value", s->value,
                  "What keeping is worth: mass (attention), or error (attention x norm(v - o), "
                  "whose least sum bounds the output error of its own plan)")
      ->check(CLI::IsMember({"mass", "error"}))
      ->type_name("mass|error");
  sub->add_flag("--shared", s->shared,
                "Also with the budget shared by the heads of a layer, and of the whole model");
  sub->add_flag("--reference", s->reference,
                fmt::format("Also solve each head with Boost's min-cost flow, at most {} tokens, "
                            "and compare",
                            optimum::kReferenceEntries));
  sub->add_option("--threads", s->threads, "Threads; 0: all cores. Results do not depend on them")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--out", s->out, "Result as JSON, with every budget up to the largest")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_option(
         "--lifetimes", s->lifetimes,
         "Death row of every entry in the best plans, a run a budget, safetensors: for the "
         "viewer, and for kvspan run --policy \"deaths(file=FILE)\"")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(R"help(
Every plan comes with a proof that none is better. Regrets of policies: kvspan run TRACE --regret.

Examples:
  kvspan optimum TRACE                                 at 5, 10, 20 and 40 % of the prompt
  kvspan optimum TRACE --prompt 512 --budget 64,10%,20% --shared --out optimum.json
  kvspan optimum TRACE --chunk 512 --rows all
  kvspan optimum TRACE --prompt 512 --value error      what eviction need not lose of outputs
  kvspan optimum TRACE --prompt 512 --budget 20% --lifetimes best.safetensors
  kvspan trace slice TRACE --tokens 256 --out short.safetensors
  kvspan optimum short.safetensors --prompt 64 --reference)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
