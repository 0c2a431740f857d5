// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/scorers.h"

#include <memory>
#include <string>
#include <utility>

#include "sim/policies/shared/budgets.h"
#include "sim/policies/shared/groups.h"

namespace kvspan::policies {
namespace {

class Votes final : public Scorer {
 public:
  explicit Votes(const VotesSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.last_rows = settings_.window}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double slack =
        reduce_group(view.shape(), head, settings_.group, out, [&](int q, std::span<double> votes) {
          const double s = view.votes(q, settings_.window, entries, votes);
          if (settings_.pool_first) pool(settings_.kind, settings_.kernel, votes);
          return s;
        });
    if (!settings_.pool_first) pool(settings_.kind, settings_.kernel, out);
    round_sums(out);
    return slack;
  }

 private:
  VotesSettings settings_;
};

class ColumnSums final : public Scorer {
 public:
  explicit ColumnSums(bool normalise) : normalise_(normalise) {}
  Needs needs() const override { return {.column_sums = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double slack = reduce_group(
        view.shape(), head, Group::sum, out,
        [&](int q, std::span<double> sums) { return view.column_sum(q, entries, sums); });
    if (normalise_) {
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] /= static_cast<double>(view.pass().end - entries[i]);
    }
    round_sums(out);
    return slack;
  }

 private:
  bool normalise_;
};

class Position final : public Scorer {
 public:
  double score(const View& /*view*/, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = entries[i];
    return 0;
  }
};

class Birth final : public Scorer {
 public:
  Birth(Needs needs, BirthValues values, int heads)
      : needs_(needs), values_(std::move(values)), known_(index(heads)) {}
  Needs needs() const override { return needs_; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::vector<double>& known = known_[index(head)];
    const auto begin = static_cast<TokenIndex>(known.size());
    const auto end = static_cast<TokenIndex>(view.pass().end);
    if (begin < end) {
      known.resize(index(end));
      values_(view, head, begin, end, std::span(known).subspan(index(begin)));
    }
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = known[index(entries[i])];
    return 0;
  }

 private:
  Needs needs_;
  BirthValues values_;
  std::vector<std::vector<double>> known_;  // [heads][tokens so far]
};

}  // namespace

std::vector<Parameter> votes_parameters(int window, int kernel) {
  using Kind = Parameter::Kind;
  return {{.name = "window",
           .fallback = std::to_string(window),
           .unit = "rows",
           .help = "observation window, inside the budget",
           .range = {1, 1e6}},
          {.name = "kernel",
           .fallback = std::to_string(kernel),
           .unit = "entries",
           .help = "pooling kernel, odd",
           .range = {1, 1e6}},
          {.name = "pool",
           .kind = Kind::word,
           .fallback = "max",
           .help = "pooling of the votes",
           .choices = {"max", "avg"}},
          {.name = "group",
           .kind = Kind::word,
           .fallback = "mean",
           .help = "query heads to KV head; none: one set per query head",
           .choices = {"mean", "max", "sum", "none"}},
          {.name = "order",
           .kind = Kind::word,
           .fallback = "group_then_pool",
           .help = "what is reduced first",
           .choices = {"group_then_pool", "pool_then_group"}}};
}

Scoring votes_scoring(const Arguments& arguments) {
  return votes_scoring({arguments.count("window"), odd_count(arguments, "kernel"),
                        arguments.is("pool", "max") ? Pool::max : Pool::avg,
                        parse_group(arguments.text("group")),
                        arguments.is("order", "pool_then_group")});
}

Scoring votes_scoring(const VotesSettings& settings) {
  Scoring scoring;
  scoring.make = [settings](const LayerShape&) { return std::make_unique<Votes>(settings); };
  scoring.window = settings.window;
  scoring.per_query_head = settings.group == Group::none;
  scoring.by_place = true;
  scoring.sharing = Sharing::always;
  return scoring;
}

Scoring column_sum_scoring(bool normalise) {
  Scoring scoring;
  scoring.make = [normalise](const LayerShape&) { return std::make_unique<ColumnSums>(normalise); };
  scoring.evicts_in_decode = true;
  return scoring;
}

Scoring position_scoring() {
  Scoring scoring;
  scoring.make = [](const LayerShape&) { return std::make_unique<Position>(); };
  scoring.by_position = true;
  return scoring;
}

ScorerFactory birth_scorer(const Needs& needs, std::function<BirthValues(const LayerShape&)> make) {
  return [needs, make = std::move(make)](const LayerShape& shape) {
    return std::make_unique<Birth>(needs, make(shape), shape.heads);
  };
}

}  // namespace kvspan::policies
