// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/foresightkv_fit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sim/policies/shared/golden_eviction.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr std::size_t kUnits = 16;  // of the published network
// Collects the samples of the heads of a layer over rows [0, end).
class Gathering {
 public:
  Gathering(const Trace& trace, int layer, RowIndex from, RowIndex end, const FitOptions& options);
  std::vector<Samples> samples();

 private:
  void golden_trajectory();
  void first_decisions();
  void add(std::size_t head, const GoldenChoice& choice);
  void start_interval() { stats_.assign(stats_.size(), IntervalStats(index(end_), interval_)); }

  const Trace& trace_;
  const int layer_;
  const RowIndex from_, end_;
  const FitOptions& options_;
  const std::size_t group_;
  // An interval and a budget that leave decisions in a short text.
  const RowIndex interval_;
  const TokenCount budget_;
  Blocks future_;
  std::vector<std::vector<GoldenChoice>> golden_;  // [kv_heads], the same rows for all heads
  LayerVectors k_, v_;
  std::vector<IntervalStats> stats_;  // [query_heads]
  std::vector<RunningSums> sums_;     // [query_heads]
  std::int32_t decision_ = 0;
  std::vector<Samples> out_;  // [kv_heads]
};

Gathering::Gathering(const Trace& trace, int layer, RowIndex from, RowIndex end,
                     const FitOptions& options)
    : trace_(trace),
      layer_(layer),
      from_(from),
      end_(end),
      options_(options),
      group_(index(trace.meta().query_heads / trace.meta().kv_heads)),
      interval_(std::clamp<RowIndex>(options.interval, 1, std::max<RowIndex>(1, end / 4))),
      budget_(std::clamp<TokenCount>(options.budget, 1, std::max<RowIndex>(1, end / 2))),
      future_(largest_block_means(trace, layer, 0, end, interval_)) {
  const TraceMeta& m = trace.meta();
  const bool vectors = !options.attention_only;
  for (int h = 0; h < m.kv_heads; ++h) {
    golden_.push_back(golden_choices(future_, index(h), end, interval_, budget_));
    out_.emplace_back().width = kStats * group_ + (vectors ? index(m.head_dim + m.v_head_dim) : 0);
  }
  if (vectors) {
    k_ = read_vectors(trace, layer, 'k', 0, end);
    v_ = read_vectors(trace, layer, 'v', 0, end);
  }
  stats_.assign(index(m.query_heads), IntervalStats(index(end), interval_));
  sums_.assign(index(m.query_heads),
               {std::vector<float>(index(end)), std::vector<float>(index(end))});
}

std::vector<Samples> Gathering::samples() {
  if (golden_.empty() || golden_.front().empty()) return std::move(out_);
  golden_trajectory();
  first_decisions();
  return std::move(out_);
}

// Features and labels of a decision, from the statistics of now.
void Gathering::add(std::size_t head, const GoldenChoice& choice) {
  if (choice.row < from_) return;
  Samples& s = out_[head];
  for (std::size_t c = 0; c < choice.candidates.size(); ++c) {
    const TokenIndex token = choice.candidates[c];
    for (std::size_t f = 0; f < kStats; ++f) {
      for (std::size_t q = head * group_; q < (head + 1) * group_; ++q) {
        s.x.push_back(f < 6    ? stats_[q].values[f][index(token)]
                      : f == 6 ? sums_[q].plain[index(token)]
                               : sums_[q].decayed[index(token)]);
      }
    }
    if (!options_.attention_only) {
      for (const auto& part :
           {k_.at(token, static_cast<int>(head)), v_.at(token, static_cast<int>(head))})
        s.x.insert(s.x.end(), part.begin(), part.end());
    }
    const auto label = static_cast<double>(choice.label[c]);
    s.y.push_back(options_.method == "logit" ? (choice.drops[c] != 0 ? 1.0 : 0.0)
                                             : -std::log(label + 1e-6));
    s.decision.push_back(decision_);
  }
}

void Gathering::golden_trajectory() {
  std::vector<std::vector<char>> alive(golden_.size(), std::vector<char>(index(end_), 1));
  const std::vector<GoldenChoice>& choices = golden_.front();
  std::size_t next = 0;
  const auto decide = [&] {
    for (std::size_t q = 0; q < sums_.size(); ++q) {
      for (std::size_t i = 0; i < index(choices[next].row); ++i)
        sums_[q].add(i, stats_[q].values[2][i]);
    }
    for (std::size_t h = 0; h < golden_.size(); ++h) {
      const GoldenChoice& choice = golden_[h][next];
      add(h, choice);
      for (std::size_t c = 0; c < choice.candidates.size(); ++c) {
        if (choice.drops[c] != 0) alive[h][index(choice.candidates[c])] = 0;
      }
    }
    start_interval();
    ++next;
    ++decision_;
  };
  for_each_row(trace_, layer_, 0, choices.back().row,
               [&](int q, RowIndex row, const RowTerms& terms) {
                 const auto& readable = alive[index(q) / group_];
                 double sum = terms.sink;
                 for (RowIndex i = 0; i <= row; ++i) {
                   if (readable[index(i)] != 0) sum += static_cast<double>(terms.terms[i]);
                 }
                 const RowIndex left = choices[next].row - row;
                 for (RowIndex i = 0; i <= row && sum > 0; ++i) {
                   if (readable[index(i)] == 0) continue;
                   const double p = static_cast<double>(terms.terms[i]) / sum;
                   stats_[index(q)].add(index(i), static_cast<float>(p), left);
                 }
                 if (row + 1 == choices[next].row && q + 1 == trace_.meta().query_heads) decide();
               });
}

// The first sums are over the whole prompt, whose length a user chooses: several lengths.
void Gathering::first_decisions() {
  const std::vector<RowIndex> rows = prompt_ends(end_, interval_);
  std::vector<std::vector<float>> total(stats_.size(), std::vector<float>(index(end_), 0.0F));
  start_interval();
  auto next = rows.begin();
  const auto end_interval = [&](RowIndex row) {
    for (std::size_t q = 0; q < stats_.size(); ++q) {
      std::vector<float>& sum = stats_[q].values[2];
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += total[q][i];
      total[q] = sum;
      sums_[q] = {sum, sum};
    }
    if (row == *next) {
      for (std::size_t h = 0; h < golden_.size(); ++h)
        add(h, first_choice(future_, h, row, end_, interval_, budget_));
      ++next;
      ++decision_;
    }
    start_interval();
  };
  for_each_row(trace_, layer_, 0, rows.back(), [&](int q, RowIndex row, const RowTerms& terms) {
    const double sum = terms.sum + terms.sink;
    const RowIndex left = interval_ - row % interval_;
    for (RowIndex i = 0; i <= row && sum > 0; ++i) {
      stats_[index(q)].add(index(i), static_cast<float>(static_cast<double>(terms.terms[i]) / sum),
                           left);
    }
    if (left == 1 && q + 1 == trace_.meta().query_heads) end_interval(row + 1);
  });
}

std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  return Gathering(trace, layer, from, end, options).samples();
}

}  // namespace

FittedScorer foresightkv_fit() {
  FittedScorer out;
  out.name = "foresightkv";
  out.features = "8 statistics of attention over an interval for each query head; k; v";
  out.label = "largest future block mean on the golden trajectory (logit: golden drops it)";
  out.methods = {"logit", "ridge", "mlp"};  // the first is what foresightkv() takes
  out.gather = gather;
  out.fit = [](const Samples& samples, const FitOptions& o) {
    if (o.method == "ridge") return fit_ridge(samples, o.lambda);
    if (o.method == "mlp")
      return fit_mlp(samples, {.hidden = kUnits, .steps = o.steps, .seed = o.seed});
    // Classes weigh the same: (B - I) / I with the rows that there are.
    const auto ones = static_cast<double>(std::count(samples.y.begin(), samples.y.end(), 1.0));
    const double others = static_cast<double>(samples.rows()) - ones;
    return fit_logit(samples, o.lambda, ones > 0 && others > 0 ? others / ones : 1);
  };
  out.quality = [](const Regressor& model, const Samples& samples, const auto&...) {
    return agreement(model, samples);
  };
  return out;
}

}  // namespace kvspan::policies
