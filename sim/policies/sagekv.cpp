// SPDX-License-Identifier: Apache-2.0
// SAGE-KV: one selection after the prompt, frozen from then on, and a sliding window in decode.
//   sinks     S = a quarter of the budget B, the first tokens
//   selected  k = floor(B / (2 G)) for each query head of the group: what the prompt's last row reads
//             most between sinks and recent tokens
//   recent    R = B - S - G k, the newest; every decode row enters and the oldest of them leaves
// A prompt of at most B tokens is left alone; decode then slides over everything behind the sinks.
// Source: Wang et al., arXiv 2503.08879, section 3 (no code was found). The paper does not say whether
// an entry that several query heads select is stored once:
//   dup=fill   (default) the heads take turns, best first, until G k distinct entries are found, so
//              that exactly B stay
//   dup=union  the union of the G lists of k: up to B
// Its example for a group of 7 and B = 8192 takes k = 512, where the formula gives 585: k=512.
// agg=sum is not the authors': one list of G k by the sum of the group's logits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

// How a budget is divided.
struct Division {
  TokenCount sinks = 0, each = 0, recent = 0;  // each: per query head
};

struct Shares {
  double sinks, recent;            // percent of the budget
  std::optional<TokenCount> each;  // given k
  int group;

  [[nodiscard]] Division of(TokenCount budget) const {
    const auto b = static_cast<double>(budget);
    Division out;
    out.sinks = static_cast<TokenCount>(std::floor(b * sinks / 100 + 1e-9));
    const double middle = b * (100 - sinks - recent) / 100;
    out.each = each ? *each : static_cast<TokenCount>(std::floor(middle / group + 1e-9));
    out.each = std::min<TokenCount>(out.each, (budget - out.sinks) / group);
    out.recent = budget - out.sinks - group * out.each;
    return out;
  }
};

enum class Duplicates : std::uint8_t { fill, join };

// One list per query head of the group, best first, with the probabilities of the prompt's last row.
struct Ranking {
  std::vector<std::size_t> order;
  std::vector<double> p;  // in this order
  double slack = 0;
  // True if nobody can cross the line behind the `count` best.
  [[nodiscard]] bool sure(std::size_t count) const {
    return slack == 0 || count == 0 || count >= p.size() || p[count - 1] - p[count] > 2 * slack;
  }
};

class Turns final : public Scorer {
 public:
  Turns(Duplicates duplicates, TokenCount each) : duplicates_(duplicates), each_(index(each)) {}
  Needs needs() const override { return {.last_rows = 1}; }

  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::vector<Ranking> heads;
    for (int g = 0; g < view.shape().group(); ++g)
      heads.push_back(rank(view, head * view.shape().group() + g, entries));
    const bool sure = duplicates_ == Duplicates::join ? join(heads, out) : fill(heads, out);
    return sure ? 0.0 : std::numeric_limits<double>::infinity();
  }

 private:
  static Ranking rank(const View& view, int query_head, std::span<const TokenIndex> entries) {
    Ranking out;
    std::vector<double> p(entries.size());
    out.slack = view.probabilities(query_head, view.pass().end - 1, entries, p);
    round_sums(p);
    out.order.resize(p.size());
    std::iota(out.order.begin(), out.order.end(), std::size_t{0});
    std::stable_sort(out.order.begin(), out.order.end(),
                     [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
    for (const std::size_t i : out.order) out.p.push_back(p[i]);
    return out;
  }

  // Above 0 where any head has the entry among its k best.
  bool join(const std::vector<Ranking>& heads, std::span<double> out) const {
    std::fill(out.begin(), out.end(), 0.0);
    bool sure = true;
    for (const Ranking& head : heads) {
      const std::size_t count = std::min(each_, head.order.size());
      for (std::size_t i = 0; i < count; ++i) {
        double& value = out[head.order[i]];
        value = std::max(value, static_cast<double>(count - i));
      }
      sure = sure && head.sure(count);
    }
    return sure;
  }

  // Minus the turn in which an entry is first taken: the best of every head, then the second of every
  // head, ...
  bool fill(const std::vector<Ranking>& heads, std::span<double> out) const {
    const double untaken = std::numeric_limits<double>::lowest();
    std::fill(out.begin(), out.end(), untaken);
    const std::size_t wanted = each_ * heads.size();
    std::size_t taken = 0;
    bool sure = true;
    for (std::size_t i = 0; i < out.size(); ++i) {
      for (std::size_t g = 0; g < heads.size(); ++g) {
        double& value = out[heads[g].order[i]];
        if (value != untaken) continue;
        value = -static_cast<double>(taken);
        if (++taken != wanted) continue;
        // This head's pick was the last one: before it, and with it, every list was cut.
        for (std::size_t other = 0; other < heads.size(); ++other)
          sure = sure && heads[other].sure(i + (other <= g ? 1 : 0));
        sure = sure && heads[g].sure(i);
      }
    }
    return sure;
  }

  Duplicates duplicates_;
  std::size_t each_;
};

// Logits are formed in double: errors of fp32 would decide between sums that are 0 on paper.
class SummedLogits final : public Scorer {
 public:
  SummedLogits(double softcap, RowIndex window) : softcap_(softcap), window_(window) {}
  Needs needs() const override { return {.last_rows = 1, .q = true, .k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int per_kv = shape.query_heads / shape.kv_heads;
    (void)reduce_group(shape, head, Group::sum, out, [&](int q, std::span<double> z) {
      const RowIndex row = view.pass().end - 1;
      const std::vector<float> query = view.query(q, row);
      for (std::size_t i = 0; i < entries.size(); ++i) {
        const std::vector<float> key = view.key(q / per_kv, entries[i]);
        double dot = 0;
        for (std::size_t x = 0; x < key.size(); ++x)
          dot += static_cast<double>(query[x]) * static_cast<double>(key[x]);
        z[i] = dot * view.score_scale();
        if (softcap_ > 0) z[i] = softcap_ * std::tanh(z[i] / softcap_);
        if (window_ > 0 && entries[i] <= row - window_)
          z[i] = -std::numeric_limits<double>::infinity();
      }
      return 0.0;
    });
    round_sums(out);
    return 0;
  }

 private:
  double softcap_;
  RowIndex window_;  // the model's own, 0: none
};

// As many leave as came.
class OneInOneOut final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return std::max<TokenCount>(0, sizing.rows - sizing.tokens);
  }
};

// What slides in decode: the recent entries of a cut prompt, else everything behind the sinks.
Rule sliding(const Geometry& geometry, TokenCount budget, const Division& division) {
  Rule rule;
  rule.schedule = Schedule::each_decode_row();
  rule.scorer = position_scoring().make;
  if (geometry.evict_at > budget) {
    rule.first = static_cast<TokenIndex>(geometry.evict_at - division.recent);
    rule.budget = std::make_shared<OneInOneOut>();
    rule.sizing = [](const Pass& pass) { return Sizing::of_competing(pass.rows()); };
  } else {
    rule.budget = uniform_budget();
    rule.sizing = [budget](const Pass& pass) { return Sizing{budget, pass.evict_at}; };
    rule.protect = [sinks = division.sinks](const Pass&, TokenCount) { return Protect{sinks, 0}; };
  }
  return rule;
}

}  // namespace

PolicyEntry sagekv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "sagekv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "sinks, what the prompt's last row selects per query head, and a sliding window";
  entry.source = "Wang et al. 2025, arXiv 2503.08879";
  entry.evidence = "paper read";
  entry.differs =
      "no public code: whether entries chosen by several heads of a group are stored once "
      "is not said (dup=fill keeps exactly B, union the distinct ones)";
  entry.needs = "q and k, or probabilities of the prompt's last row; agg=sum: q and k";
  entry.parameters = {
      budget_parameter(),
      {.name = "sinks",
       .kind = Kind::real,
       .fallback = "25",
       .unit = "% of the budget",
       .help = "first tokens, always kept",
       .range = {0, 100}},
      {.name = "recent",
       .kind = Kind::real,
       .fallback = "25",
       .unit = "% of the budget",
       .help = "newest; rounding adds to it",
       .range = {0, 100}},
      {.name = "k",
       .fallback = "auto",
       .unit = "entries",
       .help = "selected per query head; auto: the rest of the budget, divided by the group"},
      {.name = "dup",
       .kind = Kind::word,
       .fallback = "fill",
       .help = "entries that several heads select: fill up to the budget, or the union as it is",
       .choices = {"fill", "union"}},
      {.name = "agg",
       .kind = Kind::word,
       .fallback = "perhead",
       .help = "perhead: one list per query head; sum: one per KV head, by summed logits",
       .choices = {"perhead", "sum"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Shares shares{arguments.real("sinks"), arguments.real("recent"), std::nullopt,
                  geometry.query_heads / geometry.kv_heads};
    if (shares.sinks + shares.recent > 100) {
      throw ConfigError(
          fmt::format("sagekv: found sinks={:g} and recent={:g}, expected at most 100 % together; "
                      "nearest: recent={:g}",
                      shares.sinks, shares.recent, 100 - shares.sinks));
    }
    Recipe recipe;
    recipe.size = size_of(arguments);
    const TokenCount budget = entries_of(arguments, "budget", geometry);
    if (arguments.has("k")) {
      shares.each = arguments.count("k");
      const TokenCount most = (budget - shares.of(budget).sinks) / shares.group;
      if (*shares.each > most) {
        throw ConfigError(
            fmt::format("sagekv(k): found {}, expected at most {}: a budget of {} less the sinks, "
                        "divided by {} query heads",
                        *shares.each, most, budget, shares.group));
      }
    }
    const Division division = shares.of(budget);
    const bool sum = arguments.is("agg", "sum");
    const bool joined = arguments.is("dup", "union");
    const bool join = joined && geometry.evict_at > budget;  // else nothing has to leave
    if (sum && joined) {
      throw ConfigError(
          "sagekv: agg=sum makes one list, so dup=union has no meaning; use dup=fill");
    }
    Scoring scoring;
    if (sum) {
      const double softcap = geometry.trace != nullptr ? geometry.trace->meta().logit_softcap : 0.0;
      scoring.make = [softcap, windows = geometry.sliding_window](const LayerShape& shape) {
        const RowIndex window = windows.empty() ? 0 : windows[index(shape.layer)];
        return std::make_unique<SummedLogits>(softcap, window);
      };
      recipe.notes.emplace_back("agg=sum is not the authors' rule");
    } else {
      scoring.make = [join, each = division.each](const LayerShape&) {
        return std::make_unique<Turns>(join ? Duplicates::join : Duplicates::fill, each);
      };
    }
    recipe.scorer = own(scoring);
    recipe.schedule = own(Schedule::at_evict_point());
    recipe.protect = own(ProtectRule([shares](TokenCount tokens) {
      const Division d = shares.of(tokens);
      return Protect{d.sinks, d.recent};
    }));
    // Its own, since the sliding window knows one budget for all layers.
    recipe.shape = own(join ? keep_positive() : uniform_budget());
    recipe.closed_form = !joined;
    recipe.more_rules.push_back(sliding(geometry, budget, division));
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
