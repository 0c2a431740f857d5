// SPDX-License-Identifier: Apache-2.0
// Keyformer: H2O's shape with another score. Every row adds, per query head, a noisy softmax of its
// logits over the entries that it reads, so that the tokens kept do not take all of the mass that
// the evicted ones leave behind:
//   f_j += softmax_j((z_j + g_j) / tau),   g = -log(-log u), u uniform, drawn anew for every cell
//   tau = tau_start + itr (tau_end - tau_start) / max_new,   itr = decode rows so far, 0 in the
//                                                            prompt
// The largest sums (K) and the newest `recent` of the budget (R) stay; sums run over the group's
// query heads.
//
// variant=code is what the published masks do. They have one column more than there are tokens, so
// that the last R columns are the newest R - 1 and the token to come; the R-th newest is neither
// recent nor a candidate, and masks are joined by "and": who leaves the window dies, whatever its
// score. So the K keys are chosen once, no later token becomes one, and a row reads K + R entries
// with itself, where variant=paper reads K + R + 1 and lets window leavers compete.
// Source: Adnan et al., arXiv 2403.09054; code d-matrix-ai/keyformer-llm. The code's default is a
// budget of 60 % of the prompt, the headline runs use 50 %; its MPT variant `old_bias` acts on
// every 8th decode row (every=8). Draws are counter-based, so they differ from torch's for any
// seed.
#include <algorithm>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/row_sums.h"

namespace kvspan::policies {
namespace {

struct KeyformerSettings {
  double tau_start, tau_end;
  std::uint64_t seed;
  RowIndex evict_point, tokens;
};

class NoisySoftmax : public RowSums {
 public:
  NoisySoftmax(const LayerShape& shape, const KeyformerSettings& settings)
      : RowSums(shape), settings_(settings) {}
  [[nodiscard]] Needs needs() const override {
    return {.observe = Observe::always, .q = true, .k = true};
  }

 private:
  // exp((z + g) / tau) = (exp(z) / x)^(1 / tau) with x = -log u, and p' is exp(z) up to a factor.
  void weigh(const AttentionRow& row, std::span<double> p) const override {
    const std::uint64_t cell =
        splitmix64(splitmix64(splitmix64(splitmix64(settings_.seed) ^
                                         static_cast<std::uint64_t>(row.model_layer)) ^
                              static_cast<std::uint64_t>(row.query_head)) ^
                   static_cast<std::uint64_t>(row.row));
    const double power = 1.0 / tau(row.row);
    double sum = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      p[i] /= -std::log(uniform(cell, {row.entries[i]}));
      if (power != 1.0) p[i] = std::pow(p[i], power);
      sum += p[i];
    }
    if (!(sum > 0)) return;
    for (double& value : p) value /= sum;
  }

  [[nodiscard]] double tau(RowIndex row) const {
    if (row < settings_.evict_point) return settings_.tau_start;
    const auto decoded = static_cast<double>(row - settings_.evict_point + 1);
    const auto most = static_cast<double>(settings_.tokens - settings_.evict_point);
    return settings_.tau_start + decoded * (settings_.tau_end - settings_.tau_start) / most;
  }

  KeyformerSettings settings_;
};

// variant=code: the newest candidate is the token that leaves the window. It is passed over, and
// from the first decision of the decode on so is everybody after it.
class FrozenKeys final : public NoisySoftmax {
 public:
  FrozenKeys(const LayerShape& shape, const KeyformerSettings& settings)
      : NoisySoftmax(shape, settings), end_(index(shape.heads)) {}
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::optional<TokenIndex>& end = end_[index(head)];
    if (!end || view.pass().is_prompt_chunk()) end = entries.back();
    const double slack = NoisySoftmax::score(view, head, entries, out);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (entries[i] >= *end) out[i] = 0;  // ties go to the lower token: to a key
    }
    return slack;
  }

 private:
  std::vector<std::optional<TokenIndex>> end_;  // [heads] candidates lie before it
};

// One entry less than the budget, once there are more tokens than it: the place of the row to come.
class OnePlaceFree final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.born <= sizing.tokens ? kAll : sizing.tokens - 1;
  }
};

TokenCount recent_of(double recent, TokenCount budget) {
  return static_cast<TokenCount>(std::floor(recent / 100 * static_cast<double>(budget) + 1e-9));
}

void as_coded(Recipe& recipe, const Arguments& arguments, const Geometry& geometry,
              const KeyformerSettings& settings) {
  const double recent = arguments.real("recent");
  const TokenCount budget = entries_of(arguments, "budget", geometry);
  if (recent_of(recent, budget) < 1) {
    throw ConfigError(fmt::format(
        "keyformer(variant=code): found recent={:.6g} % of {} entries, which is no token; expected "
        "at least one, since without a recent token the code drops nothing",
        recent, budget));
  }
  recipe.scorer.value = row_sum_scoring<FrozenKeys>(settings);
  recipe.shape = own(std::make_shared<OnePlaceFree>());
  recipe.protect = own(ProtectRule([recent](TokenCount held) {
    return Protect{0, std::max<TokenCount>(0, recent_of(recent, held + 1) - 1)};
  }));
}

}  // namespace

PolicyEntry keyformer() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "keyformer";
  entry.kind = MethodKind::eviction;
  entry.summary = "heavy hitters by a noisy softmax that warms up, plus the newest tokens";
  entry.source = "Adnan et al. 2024, arXiv 2403.09054";
  entry.evidence = "code read";
  entry.differs =
      "the published masks are one column too long: whoever leaves the window dies and the keys "
      "are frozen at the prompt's end (variant=code); the default is the paper's, where window "
      "leavers compete; one of the code's variants evicts every 8 rows (every=8)";
  entry.needs = "q and k";
  entry.parameters = {budget_parameter(),
                      {.name = "recent",
                       .kind = Kind::real,
                       .fallback = "30",
                       .unit = "% of the budget",
                       .help = "newest kept, inside the budget",
                       .range = {0, 100}},
                      {.name = "tau_start",
                       .kind = Kind::real,
                       .fallback = "1",
                       .help = "temperature in the prompt",
                       .range = {0.01, 100}},
                      {.name = "tau_end",
                       .kind = Kind::real,
                       .fallback = "2",
                       .help = "temperature at the last row",
                       .range = {0.01, 100}},
                      {.name = "every",
                       .fallback = "1",
                       .unit = "rows",
                       .help = "acts after every k-th decode row",
                       .range = {1, 1e6}},
                      {.name = "variant",
                       .kind = Kind::word,
                       .fallback = "paper",
                       .help = "paper: window leavers compete; code: they die, keys are frozen",
                       .choices = {"paper", "code"}},
                      seed_parameter("of the noise")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::uint64_t seed = seed_of(arguments, geometry);
    const KeyformerSettings settings{arguments.real("tau_start"), arguments.real("tau_end"), seed,
                                     geometry.evict_point, geometry.tokens};
    Recipe recipe = evict_by_row_sums<NoisySoftmax>(arguments, geometry, settings);
    recipe.schedule = own(Schedule::from_evict_point(arguments.count("every")));
    if (arguments.is("variant", "code")) {
      as_coded(recipe, arguments, geometry, settings);
    } else {
      recipe.scorer.value.sharing = Sharing::always;
      recipe.protect = own(ProtectRule([recent = arguments.real("recent")](TokenCount budget) {
        return Protect{0, recent_of(recent, budget)};
      }));
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
