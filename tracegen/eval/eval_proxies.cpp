// SPDX-License-Identifier: Apache-2.0
// Do the replay's figures rank policies as the model does?
#include <algorithm>

#include "sim/base/distribution.h"
#include "sim/base/random.h"
#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {
namespace {

// Of one run at one sample; larger is better. nullopt: it has none.
struct Figure {
  const char* name;
  std::optional<double> (*of)(const Outcome& outcome);
};

std::optional<double> less(const std::optional<double>& bad) {
  return bad ? std::optional(-*bad) : std::nullopt;
}

const Figure kProxies[] = {
    {"retained attention", [](const Outcome& o) { return std::optional(o.open->retained); }},
    {"output error", [](const Outcome& o) { return less(o.open->output_error); }},
    {"spans left", [](const Outcome& o) { return o.open->spans; }}};
const Figure kOutcomes[] = {{"score", [](const Outcome& o) { return std::optional(o.score); }},
                            {"delta nll", [](const Outcome& o) { return less(o.delta_nll); }},
                            {"KL", [](const Outcome& o) { return less(o.divergence); }}};

class Judge {
 public:
  explicit Judge(const TaskResult& task) : task_(task) {
    // `full` is no method, and a run without a replay has nothing to say.
    for (std::size_t r = 1; r < task.samples.front().outcomes.size(); ++r) {
      const bool replayed = std::ranges::all_of(
          task.samples, [&](const SampleResult& s) { return s.outcomes[r].open.has_value(); });
      if (replayed) runs_.push_back(r);
    }
  }
  [[nodiscard]] std::size_t runs() const { return runs_.size(); }

  [[nodiscard]] std::optional<double> correlation(const Figure& proxy, const Figure& outcome,
                                                  const std::vector<std::size_t>& samples) const {
    std::vector<double> x;
    std::vector<double> y;
    for (const std::size_t run : runs_) {
      double means[2] = {0, 0};
      for (const std::size_t s : samples) {
        const auto a = proxy.of(task_.samples[s].outcomes[run]);
        const auto b = outcome.of(task_.samples[s].outcomes[run]);
        if (!a || !b) return std::nullopt;
        means[0] += *a;
        means[1] += *b;
      }
      x.push_back(means[0]);
      y.push_back(means[1]);
    }
    return rank_correlation(x, y);
  }

 private:
  const TaskResult& task_;
  std::vector<std::size_t> runs_;
};

}  // namespace

void judge_proxies(TaskResult& task, const FigureOptions& options) {
  constexpr std::size_t kFewestRuns = 3;
  const Judge judge(task);
  if (judge.runs() < kFewestRuns) return;
  const std::size_t n = task.samples.size();
  std::vector<std::size_t> all;
  for (std::size_t s = 0; s < n; ++s) all.push_back(s);
  for (const Figure& proxy : kProxies) {
    for (const Figure& outcome : kOutcomes) {
      const auto found = judge.correlation(proxy, outcome, all);
      if (!found) continue;
      std::vector<double> drawn;
      std::vector<std::size_t> samples(n);
      for (int b = 0; b < options.draws; ++b) {
        for (std::size_t i = 0; i < n; ++i) {
          const double place =
              uniform(options.seed, {b, static_cast<std::int64_t>(i)}) * static_cast<double>(n);
          samples[i] = std::min(n - 1, static_cast<std::size_t>(place));
        }
        drawn.push_back(*judge.correlation(proxy, outcome, samples));
      }
      std::sort(drawn.begin(), drawn.end());
      task.proxies.push_back({proxy.name,
                              outcome.name,
                              *found,
                              {nearest_rank(drawn, 0.025), nearest_rank(drawn, 0.975)}});
    }
  }
}

}  // namespace kvspan::tracegen
