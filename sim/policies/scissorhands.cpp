// SPDX-License-Identifier: Apache-2.0
// Scissorhands: entries that were seldom attended to of late will stay unimportant ("persistence of
// importance"). Evicts in batches: nothing while a head holds at most its budget B, then
// down to B - m at once, m = floor(drop * B), so that holdings run in a saw-tooth up to B.
//   low vote  a row that has t entries gives one to every entry with p' < 1/t
//   score     minus the low votes of the last `window` rows, summed over the query heads of the group
// The newest `recent` entries stay (the paper's pseudocode inverts this line; its comment is followed).
// Source: Liu et al., arXiv 2305.17118, algorithm 2; code lzcemma/Scissorhands. The paper is for MHA.
// t is the number of entries up to the row in this head's own cache; where a selector lets the row read
// fewer, those that it does not read have p' = 0. The paper gives later layers more of the budget and
// does not publish the curve: here all layers get the same.
//
// mode=eval_code is the rule of the released evaluation code, which is another one: model layers 5 to
// 35 only, from position 100 on, without a budget: an entry stays while one of the last 100 rows gave
// it more than that row's 90th percentile, or while it is among the newest 10. "Or" runs over the
// query heads of the group too.
#include <algorithm>
#include <cmath>
#include <deque>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

constexpr int kFirstLayer = 5, kLastLayer = 35;
constexpr RowIndex kFrom = 100, kRows = 100;
constexpr TokenCount kNewest = 10;

// numpy's linear quantile of values that may be reordered.
double percentile(std::span<double> values, double share) {
  const double place = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(std::floor(place));
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[index(below)];
  if (static_cast<double>(below) == place) return low;
  const double high = *std::min_element(values.begin() + below + 1, values.end());
  return low + (place - std::floor(place)) * (high - low);
}

// Votes of the last `window` rows, kept as the rows gave them: rows leave the sums when they are past
// the window. Rows that no decision can look back at are not kept.
class RecentVotes : public Scorer {
 public:
  RecentVotes(RowIndex window, int heads) : window_(window), sums_(index(heads)) {}
  Needs needs() const override { return {.observe = Observe::always}; }

  void observe(const View& view, RowIndex begin, RowIndex end) override {
    const Pass& pass = view.pass();
    for (RowIndex row = begin; row < end; ++row) {
      if (row >= std::min(pass.end, pass.evict_at) - window_) add(view, row);
    }
  }

 protected:
  // One vote, or none, for each entry that a row of one query head reads; returns how many entries
  // lie too close to the line.
  virtual std::int64_t vote(std::span<const double> p, double slack,
                            std::span<std::uint8_t> votes) const = 0;

  // Sums over the window that ends with this pass; returns the cells in doubt.
  double sums(const View& view, int head, std::span<const TokenIndex> entries,
              std::span<double> out) {
    while (!ring_.empty() && ring_.front().row < view.pass().end - window_) forget();
    const std::vector<std::int32_t>& sum = sums_[index(head)];
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto t = static_cast<std::size_t>(entries[i]);
      out[i] = t < sum.size() ? sum[t] : 0;
    }
    std::int64_t doubts = 0;
    for (const Row& row : ring_) doubts += row.heads[index(head)].doubts;
    return static_cast<double>(doubts);
  }

 private:
  struct Row {
    struct Votes {
      std::vector<TokenIndex> entries;  // that the row reads; empty: 0, 1, 2, ...
      std::vector<std::uint8_t> count;  // of these, at most the group's size
      std::int64_t doubts = 0;
    };
    RowIndex row = 0;
    std::vector<Votes> heads;
  };

  void add(const View& view, RowIndex row) {
    if (!ring_.empty() && ring_.front().row <= row - window_) forget();
    const LayerShape& shape = view.shape();
    Row& out = ring_.emplace_back(Row{row, std::vector<Row::Votes>(index(shape.heads))});
    for (int h = 0; h < shape.heads; ++h) {
      const std::span<const TokenIndex> entries = resident_up_to(view, h, row);
      std::vector<double> p(entries.size());
      std::vector<std::uint8_t> one(entries.size());
      Row::Votes& votes = out.heads[index(h)];
      std::vector<std::uint8_t>& all = votes.count;
      all.assign(entries.size(), 0);
      for (int g = 0; g < shape.group(); ++g) {
        const double slack = view.probabilities(h * shape.group() + g, row, entries, p);
        std::fill(one.begin(), one.end(), std::uint8_t{0});
        votes.doubts += vote(p, slack, one) > 0 ? 1 : 0;
        for (std::size_t i = 0; i < all.size(); ++i)
          all[i] = static_cast<std::uint8_t>(all[i] + one[i]);
      }
      std::vector<std::int32_t>& sum = sums_[index(h)];
      sum.resize(std::max(sum.size(), index(row + 1)), 0);
      if (std::ssize(entries) <= row) votes.entries.assign(entries.begin(), entries.end());
      for (std::size_t i = 0; i < all.size(); ++i) sum[index(entries[i])] += all[i];
    }
  }

  void forget() {
    for (std::size_t h = 0; h < sums_.size(); ++h) {
      const Row::Votes& votes = ring_.front().heads[h];
      for (std::size_t i = 0; i < votes.count.size(); ++i)
        sums_[h][votes.entries.empty() ? i : index(votes.entries[i])] -= votes.count[i];
    }
    ring_.pop_front();
  }

  RowIndex window_;
  std::deque<Row> ring_;
  std::vector<std::vector<std::int32_t>> sums_;  // [heads][tokens so far]
};

class LowVotes final : public RecentVotes {
 public:
  using RecentVotes::RecentVotes;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double doubts = sums(view, head, entries, out);
    for (double& value : out) value = -value;
    return doubts;
  }

 protected:
  std::int64_t vote(std::span<const double> p, double slack,
                    std::span<std::uint8_t> votes) const override {
    const double line = 1.0 / static_cast<double>(p.size());
    std::int64_t close = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      // In fp32, so that equal shares are not below their mean.
      votes[i] = static_cast<float>(p[i]) < static_cast<float>(line) ? 1 : 0;
      close += slack > 0 && std::abs(p[i] - line) <= slack ? 1 : 0;
    }
    return close;
  }
};

class HighVotes final : public RecentVotes {
 public:
  explicit HighVotes(const LayerShape& shape)
      : RecentVotes(kRows, shape.heads),
        acts_(shape.model_layer >= kFirstLayer && shape.model_layer <= kLastLayer) {}
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    if (acts_ && view.pass().end > kFrom) return sums(view, head, entries, out);
    std::fill(out.begin(), out.end(), 1.0);
    return 0;
  }

 protected:
  std::int64_t vote(std::span<const double> p, double slack,
                    std::span<std::uint8_t> votes) const override {
    std::vector<double> values(p.begin(), p.end());
    round_sums(values);
    const std::vector<double> rounded = values;
    const double line = percentile(values, 0.9);
    std::int64_t close = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      votes[i] = rounded[i] > line ? 1 : 0;
      close += slack > 0 && std::abs(p[i] - line) <= 2 * slack ? 1 : 0;
    }
    return close;
  }

 private:
  bool acts_;
};

// B while a head holds no more, then B less the batch.
class SawTooth final : public Budget {
 public:
  explicit SawTooth(double drop) : drop_(drop) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    if (sizing.tokens == kAll || sizing.rows <= sizing.tokens) return kAll;
    const auto batch = static_cast<TokenCount>(
        std::floor(drop_ / 100 * static_cast<double>(sizing.tokens) + 1e-9));
    return std::max<TokenCount>(1, sizing.tokens - batch);
  }

 private:
  double drop_;
};

}  // namespace

PolicyEntry scissorhands() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "scissorhands";
  entry.kind = MethodKind::eviction;
  entry.summary = "drops half of a full cache at once: what recent rows attended to least often";
  entry.source = "Liu et al. 2023, arXiv 2305.17118";
  entry.evidence = "secondary (paper); code read (eval_code)";
  entry.differs =
      "the released evaluation code is another rule than the paper's (mode=eval_code); the "
      "paper's curve over layers is unpublished, every layer has the same budget";
  entry.needs = "q and k, or probabilities of all rows";
  entry.parameters = {
      budget_parameter(),
      {.name = "window",
       .fallback = "400",
       .unit = "rows",
       .help = "rows whose low votes count",
       .range = {1, 1e6}},
      {.name = "recent",
       .fallback = "10",
       .unit = "tokens",
       .help = "newest, never dropped",
       .range = {0, 1e6}},
      {.name = "drop",
       .kind = Kind::real,
       .fallback = "50",
       .unit = "% of the budget",
       .help = "dropped at once when it is full",
       .range = {0, 100}},
      {.name = "mode",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "paper: the algorithm; eval_code: the released code's rule, without a budget",
       .choices = {"paper", "eval_code"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    Scoring scoring;
    scoring.evicts_in_decode = true;
    recipe.schedule = own(Schedule::from_evict_point());
    recipe.charge.entry = 2;  // a counter
    if (arguments.is("mode", "eval_code")) {
      for (const char* name : {"window", "recent", "drop"}) {
        if (arguments.given(name)) {
          throw ConfigError(std::string("scissorhands: mode=eval_code fixes ") + name +
                            "; leave it out, or use mode=paper");
        }
      }
      if (arguments.given("budget")) recipe.notes.emplace_back("mode=eval_code has no budget");
      arguments.set("budget", "auto");
      arguments.set("window", std::to_string(kRows));
      arguments.set("recent", std::to_string(kNewest));
      scoring.make = [](const LayerShape& shape) { return std::make_unique<HighVotes>(shape); };
      recipe.scorer = own(scoring);
      recipe.shape = own(keep_positive());
      recipe.protect = own(protect_recent(kNewest));
      recipe.closed_form = false;
      return recipe;
    }
    const RowIndex window = arguments.count("window");
    scoring.make = [window](const LayerShape& shape) {
      return std::make_unique<LowVotes>(window, shape.heads);
    };
    recipe.scorer = own(scoring);
    recipe.role_bytes = window * geometry.tokens * geometry.kv_heads;  // a vote a row and entry
    recipe.size = size_of(arguments);
    recipe.shape = own(std::make_shared<SawTooth>(arguments.real("drop")));
    recipe.competing = true;
    recipe.protect = own(protect_recent(arguments.count("recent")));
    recipe.knob = budget_knob(geometry);
    recipe.knob->monotone = false;  // where the teeth fall changes with their length
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
