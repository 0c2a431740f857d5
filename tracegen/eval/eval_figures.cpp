// SPDX-License-Identifier: Apache-2.0
// What follows from the samples of a task: means, intervals, critical footprints.
#include <algorithm>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "sim/base/distribution.h"
#include "sim/base/random.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"
#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {
namespace {

constexpr double kDoesTheTask = 0.5;  // of the maximum score

std::vector<double> values_of(const TaskResult& task,
                              const std::function<double(const SampleResult&)>& value) {
  std::vector<double> out;
  for (const SampleResult& sample : task.samples) out.push_back(value(sample));
  return out;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// Mean over the samples that have it; nullopt: none has.
std::optional<double> mean_where(const TaskResult& task, std::size_t run,
                                 std::optional<double> Outcome::*value) {
  std::vector<double> found;
  for (const SampleResult& sample : task.samples) {
    if (sample.outcomes[run].*value) found.push_back(*(sample.outcomes[run].*value));
  }
  return found.empty() ? std::nullopt : std::optional(mean(found));
}

double footprint_of(const RunResult& run) { return run.metrics.footprint; }
double peak_of(const RunResult& run) { return run.metrics.peak_kv; }
double bytes_of(const RunResult& run) { return static_cast<double>(run.metrics.peak_bytes.total); }

PolicyFigures figures_of(const TaskResult& task, std::size_t run, const FigureOptions& options) {
  PolicyFigures out;
  const RunResult& first = task.samples.front().report.runs[run];
  out.label = first.label;
  out.method = method_of(first.label);
  out.klass = first.klass;
  out.notes = notes_of(task.samples.front().report, first);
  const auto scores = values_of(task, [&](const SampleResult& s) { return s.outcomes[run].score; });
  const auto footprints =
      values_of(task, [&](const SampleResult& s) { return footprint_of(s.report.runs[run]); });
  out.score = mean(scores);
  out.footprint = mean(footprints);
  out.peak_kv =
      mean(values_of(task, [&](const SampleResult& s) { return peak_of(s.report.runs[run]); }));
  out.peak_bytes =
      mean(values_of(task, [&](const SampleResult& s) { return bytes_of(s.report.runs[run]); }));
  out.score_interval = sweep::bootstrap_mean(scores, options.seed, options.draws);
  out.footprint_interval = sweep::bootstrap_mean(footprints, options.seed, options.draws);
  out.nll = mean_where(task, run, &Outcome::nll);
  out.delta_nll = mean_where(task, run, &Outcome::delta_nll);
  out.divergence = mean_where(task, run, &Outcome::divergence);
  std::vector<double> retained;
  for (const SampleResult& sample : task.samples) {
    if (const PhaseFidelity* phase = judged_phase(sample.report.runs[run]))
      retained.push_back(phase->mass_mean);
  }
  if (!retained.empty()) out.retained = mean(retained);
  return out;
}

// The points of a method's budgets over some samples, and of the full cache.
struct Drawn {
  const TaskResult& task;
  const std::vector<std::size_t>& runs;
  std::vector<std::size_t> samples;
  [[nodiscard]] sweep::Critical critical(double least,
                                         const std::function<double(const RunResult&)>& x) const {
    const auto over = [&](const auto& value) {
      double sum = 0;
      for (const std::size_t s : samples) sum += value(task.samples[s]);
      return sum / static_cast<double>(samples.size());
    };
    const double full = over([](const SampleResult& s) { return s.outcomes.front().score; });
    std::vector<sweep::Point> points;
    for (const std::size_t run : runs) {
      points.push_back({over([&](const SampleResult& s) { return x(s.report.runs[run]); }),
                        over([&](const SampleResult& s) { return s.outcomes[run].score; })});
    }
    return sweep::critical_point(std::move(points), least * full);
  }
};

CriticalFigures critical_of(const TaskResult& task, const std::string& method,
                            const std::vector<std::size_t>& runs, const FigureOptions& options) {
  CriticalFigures out;
  out.method = method;
  out.notes = task.policies[runs.front()].notes;
  out.budgets = runs;
  Drawn drawn{task, runs, {}};
  for (std::size_t s = 0; s < task.samples.size(); ++s) drawn.samples.push_back(s);
  out.footprint = drawn.critical(options.least, footprint_of);
  out.peak_kv = drawn.critical(options.least, peak_of);
  out.peak_bytes = drawn.critical(options.least, bytes_of);
  if (task.samples.size() < 2) return out;
  using Kind = sweep::Critical::Kind;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> crossings;
  const auto n = static_cast<double>(task.samples.size());
  for (int b = 0; b < options.draws; ++b) {
    for (std::size_t i = 0; i < drawn.samples.size(); ++i) {
      const double place = uniform(options.seed, {b, static_cast<std::int64_t>(i)}) * n;
      drawn.samples[i] = std::min(drawn.samples.size() - 1, static_cast<std::size_t>(place));
    }
    const sweep::Critical found = drawn.critical(options.least, footprint_of);
    crossings.push_back(found.kind == Kind::above   ? kNever
                        : found.kind == Kind::below ? 0
                                                    : found.x);
  }
  std::sort(crossings.begin(), crossings.end());
  const double low = nearest_rank(crossings, 0.025);
  const double high = nearest_rank(crossings, 0.975);
  if (low > 0 && low < kNever) out.low = low;
  if (high > 0 && high < kNever) out.high = high;
  return out;
}

}  // namespace

void summarise(TaskResult& task, const FigureOptions& options) {
  const std::size_t runs = task.samples.front().report.runs.size();
  for (std::size_t r = 0; r < runs; ++r) task.policies.push_back(figures_of(task, r, options));
  judge_proxies(task, options);
  const double full = task.policies.front().score;
  const bool scored = task.samples.front().sample.scoring != Scoring::log_likelihood;
  if (scored && full < kDoesTheTask) {
    task.why_not = fmt::format(
        "the model does not do this task with the full cache (score {:.2f}, expected {:.2f} of 1 "
        "at "
        "least)",
        full, kDoesTheTask);
    return;
  }
  std::map<std::string, std::vector<std::size_t>> methods;
  std::vector<std::string> order;
  for (std::size_t r = 1; r < runs; ++r) {
    std::vector<std::size_t>& of_method = methods[task.policies[r].method];
    if (of_method.empty()) order.push_back(task.policies[r].method);
    of_method.push_back(r);
  }
  for (const std::string& method : order)
    task.critical.push_back(critical_of(task, method, methods[method], options));
}

}  // namespace kvspan::tracegen
