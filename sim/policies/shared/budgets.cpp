// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/budgets.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::policies {
namespace {

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

}  // namespace

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

double floor_quotient(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

RowIndex last_row_decodes(const Geometry& geometry) {
  return geometry.evict_point == geometry.prompt && geometry.prompt > 1 ? 1 : 0;
}

ProtectRule protect_recent(TokenCount window) {
  return [window](TokenCount) { return Protect{0, window}; };
}

ProtectRule protect_newest_half() {
  return [](TokenCount budget) { return Protect{0, budget - budget / 2}; };
}

std::shared_ptr<const Budget> keep_positive() { return std::make_shared<Positive>(); }

}  // namespace kvspan::policies
