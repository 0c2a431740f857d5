// SPDX-License-Identifier: Apache-2.0
#include "sim/run/run.h"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/registry.h"
#include "sim/replay/host_scores.h"
#include "sim/run/regret.h"
#include "sim/trace/trace_tools.h"

namespace kvspan {
namespace {

// Leaves out what cannot run, if the request allows that.
Entrants enter(const Trace& trace, const Geometry& geometry, const RunRequest& request,
               RunOutline& outline) {
  if (!request.skips) return enter(trace, geometry, request.specs);
  Entrants out;
  out.lineup.geometry = geometry;
  for (const RecipeSpec& spec : request.specs) {
    if (why_not_enter(trace, spec, out)) outline.unserved.push_back(to_text(spec));
  }
  for (std::size_t p = 0; p < out.specs.size() && request.match;) {
    if (out.lineup.policies[p].knob || is_baseline(out.specs[p])) {
      ++p;
      continue;
    }
    const auto at = static_cast<std::ptrdiff_t>(p);
    outline.untunable.push_back(to_text(out.specs[p]));
    out.specs.erase(out.specs.begin() + at);
    out.lineup.policies.erase(out.lineup.policies.begin() + at);
    out.lineup.requirements.erase(out.lineup.requirements.begin() + at);
  }
  return out;
}

RunReport empty_report(const Trace& trace, const RunRequest& request, const Geometry& geometry) {
  RunReport report;
  report.command = request.command;
  report.trace_path = trace.name();
  if (request.checksum) report.trace_sha256 = request.checksum();
  report.trace = trace.meta();
  report.trace.prompt_tokens = geometry.prompt;
  report.chunk = geometry.chunk;
  report.accounting = request.accounting();
  report.lifetimes_path = request.lifetimes_path;
  report.timeline_path = request.timeline_path;
  return report;
}

}  // namespace

RunResult result_of(const Trace& trace, const RecipeSpec& spec, const Policy& policy,
                    Replay&& replay, const Accounting& accounting) {
  RunResult run;
  run.spec = policy.spec;
  run.label = label_of(spec);
  run.klass = policy.klass;
  run.bound = policy.bound;
  run.notes = policy.notes;
  if (const std::string note = cache_note(trace); !note.empty()) run.notes.push_back(note);
  const bool budgets_follow_content =
      std::any_of(policy.rules.begin(), policy.rules.end(),
                  [](const Rule& rule) { return rule.budget && !rule.budget->content_free(); });
  if (!trace.is_qkv() && budgets_follow_content)
    run.notes.emplace_back(
        "how many entries a head keeps rests on truncated attention (a score trace); 'undecided' "
        "counts only which ones");
  run.ledger = std::move(replay.ledger);
  run.metrics = compute_metrics(run.ledger, accounting);
  run.fidelity = std::move(replay.fidelity);
  run.undecided = replay.undecided;
  return run;
}

RowIndex evict_row(const Trace& trace, const std::string& text) {
  std::vector<std::string> names;
  for (const Span& span : trace.meta().spans) {
    if (span.name == text) return span.begin;
    names.push_back(span.name);
  }
  constexpr std::size_t kDigits = 18;  // that 64 bits hold
  if (!text.empty() && text.size() <= kDigits &&
      text.find_first_not_of("0123456789") == std::string::npos) {
    return std::stoll(text);
  }
  throw ConfigError(fmt::format(
      "--evict-at: the trace has no span '{}'; {}", text,
      names.empty() ? "it names no spans; a row number works, too" : nearest_hint(text, names)));
}

std::optional<std::string> why_not_enter(const Trace& trace, const RecipeSpec& spec,
                                         Entrants& entrants) {
  Lineup& lineup = entrants.lineup;
  try {
    Policy policy = make_policy(spec, lineup.geometry);
    Requirements asked = requirements_of(policy, lineup.geometry);
    if (auto reason = why_not(trace, policy, asked)) return reason;
    entrants.specs.push_back(spec);
    lineup.policies.push_back(std::move(policy));
    lineup.requirements.push_back(std::move(asked));
    return std::nullopt;
  } catch (const TraceError& error) {
    // What is fitted on the trace finds out in the middle of its walk which row is missing.
    return error.what();
  }
}

Entrants Entrants::slice(std::size_t begin, std::size_t end) const {
  return {{specs.begin() + static_cast<std::ptrdiff_t>(begin),
           specs.begin() + static_cast<std::ptrdiff_t>(end)},
          lineup.slice(begin, end)};
}

Entrants enter(const Trace& trace, const Geometry& geometry, const std::vector<RecipeSpec>& specs) {
  Entrants out;
  out.lineup.geometry = geometry;
  for (const RecipeSpec& spec : specs) {
    if (const auto reason = why_not_enter(trace, spec, out)) throw TraceError(*reason);
  }
  return out;
}

std::vector<RunResult> run_policies(const Trace& trace, const Entrants& entrants,
                                    const EngineOptions& options, const Accounting& accounting) {
  std::vector<Replay> replays = replay(trace, entrants.lineup, options);
  std::vector<RunResult> out;
  for (std::size_t p = 0; p < replays.size(); ++p) {
    out.push_back(result_of(trace, entrants.specs[p], entrants.lineup.policies[p],
                            std::move(replays[p]), accounting));
  }
  return out;
}

std::vector<RunResult> run_policies(const Trace& trace, const std::vector<RecipeSpec>& specs,
                                    const EngineOptions& options, const Accounting& accounting) {
  const Geometry geometry = geometry_of(trace, options);
  (void)parse_layout(accounting.layout);
  return run_policies(trace, enter(trace, geometry, specs), options, accounting);
}

RunReport run(const Trace& trace, const RunRequest& request, const RunWatch& watch) {
  EngineOptions options = request.engine;
  if (!request.evict_point.empty()) options.evict_point = evict_row(trace, request.evict_point);
  (void)parse_layout(request.layout);
  RunOutline outline;
  const Entrants entrants = enter(trace, geometry_of(trace, options), request, outline);
  outline.policies = entrants.specs.size();
  outline.memory = plan_memory(trace, entrants.lineup, options);
  if (request.regret) refuse_regrets(trace, options);
  if (watch.begins) watch.begins(outline);

  RunReport report = empty_report(trace, request, entrants.lineup.geometry);
  options.cancelled = watch.cancelled;
  if (!trace.is_qkv() || !options.fidelity) options.scores = nullptr;
  if (options.scores != nullptr && request.audit > 0)
    options.scores = with_audit(options.scores, request.audit, options.seed);
  const auto total = entrants.specs.size();
  for (std::size_t begin = 0; begin < total;) {
    const bool whole = !watch.grown || request.match;
    RunBatch batch{begin, whole ? total : std::min(total, 2 * begin + 1), total,
                   to_text(entrants.specs[begin])};
    if (watch.progress) options.progress = [&](double done) { watch.progress(batch, done); };
    const Entrants part = entrants.slice(batch.begin, batch.end);
    std::vector<RunResult> runs =
        request.match ? run_matched(trace, part.specs, *request.match, options, report.accounting)
                      : run_policies(trace, part, options, report.accounting);
    std::move(runs.begin(), runs.end(), std::back_inserter(report.runs));
    begin = batch.end;
    if (!watch.grown) continue;
    if (watch.cancelled && watch.cancelled()) throw Interrupted();
    watch.grown(report, batch);
  }
  if (options.scores != nullptr)
    report.device = ScoreDevice{options.scores->name(), options.scores->audit()};
  if (request.regret) {
    std::vector<char> inside;
    for (const Policy& policy : entrants.lineup.policies)
      inside.push_back(has_regret(policy) ? 1 : 0);
    options.progress = watch.solving;
    add_regrets(trace, options, inside, report.runs,
                {&report.frontier, request.plans ? &report.plans : nullptr});
  }
  return report;
}

}  // namespace kvspan
