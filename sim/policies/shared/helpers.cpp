// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/helpers.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::policies {
namespace {

class Votes final : public Scorer {
 public:
  struct Settings {
    RowIndex window;
    int kernel;
    Pool kind;
    Group group;
    bool pool_first;
  };
  explicit Votes(Settings settings) : settings_(settings) {}
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
  Settings settings_;
};

class Positive final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens;
  }
  bool content_free() const override { return false; }
  void counts(const View& /*view*/, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override {
    for (std::size_t h = 0; h < keep.size(); ++h) {
      const auto& values = scores.values[h];
      const auto chosen =
          std::count_if(values.begin(), values.end(), [](double v) { return v > 0; });
      keep[h] = std::min<TokenCount>(sizing.tokens, scores.protected_[h] + chosen);
    }
  }
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

ScorerFactory birth_scorer(const Needs& needs, std::function<BirthValues(const LayerShape&)> make) {
  return [needs, make = std::move(make)](const LayerShape& shape) {
    return std::make_unique<Birth>(needs, make(shape), shape.heads);
  };
}

Group parse_group(const std::string& word) {
  if (word == "mean") return Group::mean;
  if (word == "max") return Group::max;
  return word == "sum" ? Group::sum : Group::none;
}

double reduce_group(const LayerShape& shape, int head, Group group, std::span<double> out,
                    const std::function<double(int, std::span<double>)>& item) {
  const int size = shape.group();
  double slack = item(head * size, out);
  if (size == 1) return slack;
  std::vector<double> one(out.size());
  for (int g = 1; g < size; ++g) {
    const double s = item(head * size + g, one);
    slack = group == Group::max ? std::max(slack, s) : slack + s;
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = group == Group::max ? std::max(out[i], one[i]) : out[i] + one[i];
    }
  }
  if (group != Group::mean) return slack;
  for (double& value : out) value /= size;
  return slack / size;
}

std::span<const TokenIndex> resident_up_to(const View& view, int head, RowIndex row) {
  const std::span<const TokenIndex> all = view.resident(head);
  return all.first(index(std::upper_bound(all.begin(), all.end(), row) - all.begin()));
}

void round_sums(std::span<double> scores) {
  for (double& score : scores) score = static_cast<double>(static_cast<float>(score));
}

double squared_norm(std::span<const float> x) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

void pool(Pool kind, int kernel, std::span<double> values) {
  if (kernel == 1) return;
  const std::vector<double> in(values.begin(), values.end());
  const auto count = static_cast<std::ptrdiff_t>(in.size());
  const std::ptrdiff_t reach = kernel / 2;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const std::ptrdiff_t begin = std::max<std::ptrdiff_t>(0, i - reach);
    const std::ptrdiff_t end = std::min(count, i + reach + 1);
    double result = kind == Pool::max ? in[static_cast<std::size_t>(begin)] : 0.0;
    for (std::ptrdiff_t j = begin; j < end; ++j) {
      const double value = in[static_cast<std::size_t>(j)];
      result = kind == Pool::max ? std::max(result, value) : result + value;
    }
    values[static_cast<std::size_t>(i)] = kind == Pool::max ? result : result / kernel;
  }
}

Parameter budget_parameter(const std::string& fallback, const std::string& help) {
  return {.name = "budget",
          .kind = Parameter::Kind::amount,
          .fallback = fallback,
          .unit = "tokens, % of the prompt, or bytes",
          .help = help};
}

Slot<Amount> size_of(const Arguments& arguments, const std::string& parameter) {
  const Amount amount = arguments.amount(parameter);
  return arguments.given(parameter) ? own(amount) : by_default(amount);
}

TokenCount entries_of(const Arguments& arguments, const std::string& parameter,
                      const Geometry& geometry) {
  return budget_tokens(arguments.amount(parameter), geometry, geometry.kv_heads,
                       geometry.entry_bytes(), arguments.policy() + ": " + parameter);
}

Knob budget_knob(const Geometry& geometry) {
  return {"budget", 1, geometry.tokens, true,
          [](TokenCount tokens) { return std::to_string(tokens); }};
}

Recipe budgeted(const Arguments& arguments, const Geometry& geometry, Slot<Scoring> scorer,
                const Slot<Schedule>& schedule) {
  Recipe recipe;
  recipe.scorer = std::move(scorer);
  recipe.size = size_of(arguments);
  recipe.schedule = schedule;
  recipe.knob = budget_knob(geometry);
  return recipe;
}

Parameter seed_parameter(const std::string& of_what) {
  return {
      .name = "seed", .fallback = "auto", .help = of_what + "; auto: --seed", .range = {0, 9e15}};
}

std::uint64_t seed_of(Arguments& arguments, const Geometry& geometry) {
  const std::uint64_t seed =
      arguments.has("seed") ? static_cast<std::uint64_t>(arguments.count("seed")) : geometry.seed;
  arguments.set("seed", std::to_string(seed));
  return seed;
}

int odd_count(const Arguments& arguments, const std::string& parameter) {
  const std::int64_t count = arguments.count(parameter);
  if (count % 2 == 0) {
    throw ConfigError(fmt::format("{}({}): found {}, expected an odd number; nearest: {}",
                                  arguments.policy(), parameter, count, count + 1));
  }
  return static_cast<int>(count);
}

double tokens_before_rounding(const std::optional<Amount>& size, const Sizing& sizing) {
  if (!size || size->kind != Amount::Kind::share || size->share_of(sizing.rows) != sizing.tokens)
    return static_cast<double>(sizing.tokens);
  return static_cast<double>(sizing.rows) * (1.0 - size->one_minus_share());
}

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
  const Votes::Settings settings{arguments.count("window"), odd_count(arguments, "kernel"),
                                 arguments.is("pool", "max") ? Pool::max : Pool::avg,
                                 parse_group(arguments.text("group")),
                                 arguments.is("order", "pool_then_group")};
  Scoring scoring;
  scoring.make = [settings](const LayerShape&) { return std::make_unique<Votes>(settings); };
  scoring.window = settings.window;
  scoring.per_query_head = settings.group == Group::none;
  return scoring;
}

ProtectRule protect_recent(TokenCount window) {
  return [window](TokenCount) { return Protect{0, window}; };
}

ProtectRule protect_newest_half() {
  return [](TokenCount budget) { return Protect{0, budget - budget / 2}; };
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

std::shared_ptr<const Budget> keep_positive() { return std::make_shared<Positive>(); }

}  // namespace kvspan::policies
