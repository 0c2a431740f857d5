// SPDX-License-Identifier: Apache-2.0
// KeepKV's merge: an entry has as many votes as entries were merged into it, and rows read it as if
// it were there so many times. What another policy evicts goes into the survivor of its head with
// the nearest key, if the cosine reaches `threshold`, else it is lost:
//   k, v of the survivor = mean of k, v of both (or all), each weighted by votes x s
//   s   mean of exp(logit) over those of the last `window` rows that could see the entry, and over
//       the query heads of the group, plus 6.1e-5; a row's number of a merged entry is the mean of
//       its parts', each weighted by its votes
// A logit then counts as logit + ln votes. Lifetimes and bytes of entries stay as they are; the
// other policy decides by the trace's own keys, without votes.
// Source: Tian et al., arXiv 2504.09936; code kkvcache/KeepKV (utils_hh/modify_llama_oursk.py, the
// authors' "simulated implementation": threshold .8, as many rows as it protects newest entries,
// PyramidInfer's weights of rows for the choice of victims, 4 sinks). The paper's merged key has a
// correction that keeps one step free of loss; its code takes the mean. Softcapped logits are not
// capped again.
#include <deque>

#include "sim/policies/shared/held_entries.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/victim_states.h"

namespace kvspan::policies {
namespace {

constexpr double kSmall = 6.103515625e-5;  // the least normal fp16, as in the code

struct Voter {
  double votes = 1;
  std::deque<double> scores;  // of the last rows that could see it
  [[nodiscard]] double mean() const {
    double sum = 0;
    for (const double s : scores) sum += s;
    return (scores.empty() ? 0.0 : sum / static_cast<double>(scores.size())) + kSmall;
  }
};

class ElectoralVotes final : public Store {
 public:
  ElectoralVotes(RowIndex window, double threshold, const LayerShape& shape)
      : window_(window),
        threshold_(threshold),
        group_(shape.group()),
        held_(shape.heads),
        voters_(index(shape.heads)),
        merged_(index(shape.heads)) {}

  void age(const View& view, Decision& out) override {
    if (!view.measures_output()) return;
    scale_ = view.score_scale();
    for (int h = 0; h < view.shape().heads; ++h) {
      watch(view, h);
      const std::vector<TokenIndex> victims = victims_of(h, out);
      if (victims.empty()) continue;
      const std::vector<TokenIndex> stay = survivors(view, h, out);
      if (!stay.empty()) merge_head(view, h, victims, stay, out);
      for (const TokenIndex t : victims) {
        held_.forget(h, t);
        voters_[index(h)].erase(t);
        merged_[index(h)].erase(t);
      }
    }
  }
  bool adds_output() const override { return any_; }
  void add_output(int query_head, std::span<const float> q, double max, std::span<double> numerator,
                  double& denominator) override {
    for (const auto& [token, entry] : merged_[index(query_head / group_)]) {
      const double weight = (entry.votes - 1) * bounded_exp(scale_ * dot(q, entry.held.k) - max);
      denominator += weight;
      for (std::size_t d = 0; d < numerator.size(); ++d)
        numerator[d] += weight * static_cast<double>(entry.held.v[d]);
    }
  }

 private:
  struct MergedEntry {
    double votes = 1;
    HeldEntry held;
  };

  // Takes in what the pass's last rows give to every entry.
  void watch(const View& view, int head) {
    const LayerShape& shape = view.shape();
    const Pass& pass = view.pass();
    const std::span<const TokenIndex> entries = view.resident(head);
    const std::vector<float> keys = held_.keys(view, head, entries);
    const auto dim = index(shape.k_dim);
    auto& voters = voters_[index(head)];
    for (RowIndex row = std::max(pass.begin, pass.end - window_); row < pass.end; ++row) {
      std::vector<std::vector<float>> queries;
      for (int q = head * group_; q < (head + 1) * group_; ++q)
        queries.push_back(view.query(q, row));
      for (std::size_t i = 0; i < entries.size() && entries[i] <= row; ++i) {
        double sum = 0;
        for (const std::vector<float>& q : queries)
          sum += bounded_exp(scale_ * dot(q, std::span(keys).subspan(i * dim, dim)));
        std::deque<double>& scores = voters[entries[i]].scores;
        scores.push_back(sum / static_cast<double>(group_));
        if (std::ssize(scores) > window_) scores.pop_front();
      }
    }
  }

  void merge_head(const View& view, int head, const std::vector<TokenIndex>& victims,
                  const std::vector<TokenIndex>& stay, Decision& out) {
    auto& voters = voters_[index(head)];
    const std::vector<float> keys = held_.keys(view, head, stay);
    std::map<std::size_t, std::vector<TokenIndex>> into;  // by place among those that stay
    for (const TokenIndex t : victims) {
      const NearestKey near = nearest_key(held_.of(view, head, t).k, keys);
      if (near.cosine >= threshold_) into[near.place].push_back(t);
    }
    for (const auto& [place, parts] : into) {
      const TokenIndex token = stay[place];
      Voter& voter = voters[token];
      std::vector<double> k, v, scores(voter.scores.size(), 0.0), seen(scores.size(), 0.0);
      double weights = 0, votes = 0;
      const auto add = [&](TokenIndex t) {
        const Voter& x = voters[t];
        const HeldEntry entry = held_.of(view, head, t);
        const double weight = x.votes * x.mean();
        add_scaled(weight, entry.k, k);
        add_scaled(weight, entry.v, v);
        // Both end with the newest row.
        for (std::size_t i = 1; i <= std::min(scores.size(), x.scores.size()); ++i) {
          scores[scores.size() - i] += x.votes * x.scores[x.scores.size() - i];
          seen[scores.size() - i] += x.votes;
        }
        weights += weight;
        votes += x.votes;
      };
      add(token);
      for (const TokenIndex t : parts) add(t);
      HeldEntry entry{std::vector<float>(k.size()), std::vector<float>(v.size())};
      for (std::size_t i = 0; i < k.size(); ++i) entry.k[i] = static_cast<float>(k[i] / weights);
      for (std::size_t i = 0; i < v.size(); ++i) entry.v[i] = static_cast<float>(v[i] / weights);
      voter.votes = votes;
      for (std::size_t i = 0; i < scores.size(); ++i) voter.scores[i] = scores[i] / seen[i];
      merged_[index(head)][token] = {votes, entry};
      any_ = true;
      held_.change(view, head, token, std::move(entry), out);
    }
  }

  RowIndex window_;
  double threshold_;
  int group_;
  double scale_ = 1;
  bool any_ = false;
  HeldEntries held_;
  std::vector<std::map<TokenIndex, Voter>> voters_;        // [heads]
  std::vector<std::map<TokenIndex, MergedEntry>> merged_;  // [heads]
};

}  // namespace

PolicyEntry keepkv() {
  PolicyEntry entry;
  entry.name = "keepkv";
  entry.kind = MethodKind::merging;
  entry.summary = "merges victims into the nearest survivors, which rows then count as often";
  entry.source = "Tian et al. 2025, arXiv 2504.09936; code kkvcache/KeepKV";
  entry.evidence = "code read";
  entry.differs =
      "the store alone: victims are another policy's, where the code has PyramidInfer's weights; "
      "the merged key is the code's weighted mean, without the paper's correction";
  entry.needs = "q, k and v for the error of the output";
  entry.alone = "it merges what another policy evicts; combine it, as in h2o(budget=20%)+keepkv";
  entry.parameters = {{.name = "window",
                       .fallback = "32",
                       .unit = "rows",
                       .help = "last ones that weigh an entry",
                       .range = {1, 1e6}},
                      {.name = "threshold",
                       .kind = Parameter::Kind::real,
                       .fallback = "0.8",
                       .help = "least cosine of a merge",
                       .range = {0, 1}}};
  entry.make = [](Arguments& arguments, const Geometry& /*geometry*/) {
    const RowIndex window = arguments.count("window");
    Storing store;
    store.make = [window, threshold = arguments.real("threshold")](const LayerShape& shape) {
      return std::make_unique<ElectoralVotes>(window, threshold, shape);
    };
    store.alters_vectors = true;
    Recipe recipe;
    recipe.store = own(std::move(store));
    recipe.charge.entry = 4 * (1 + window);  // votes, and a number a row, fp32
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
