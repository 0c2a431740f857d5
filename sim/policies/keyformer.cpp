// SPDX-License-Identifier: Apache-2.0
// Keyformer: H2O's shape with another score. Every row adds, per query head, a noisy softmax of its
// logits over the entries that it reads, so that the tokens kept do not take all of the mass that
// the evicted ones leave behind:
//   f_j += softmax_j((z_j + g_j) / tau),   g = -log(-log u), u uniform, drawn anew for every cell
//   tau = tau_start + itr (tau_end - tau_start) / max_new,   itr = decode rows so far, 0 in the
//                                                            prompt
// The largest sums and the newest `recent` of the budget stay; sums run over the group's query
// heads.
// Source: Adnan et al., arXiv 2403.09054; code d-matrix-ai/keyformer-llm. The code's default is a
// budget of 60 % of the prompt, the headline runs use 50 %; its MPT variant `old_bias` acts on
// every 8th decode row (every=8). The code first shrinks the cache at the first decode step, here
// it happens after the prompt. Draws are counter-based, so they differ from torch's for any seed.
#include <cmath>

#include "sim/base/random.h"
#include "sim/policies/shared/row_sums.h"

namespace kvspan::policies {
namespace {

struct KeyformerSettings {
  double tau_start, tau_end;
  std::uint64_t seed;
  RowIndex evict_point, tokens;
};

class NoisySoftmax final : public RowSums {
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
      "the code first shrinks at the first decode step, here at the prompt's end; one of "
      "its variants evicts every 8 rows (every=8)";
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
                      seed_parameter("of the noise")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::uint64_t seed = seed_of(arguments, geometry);
    const KeyformerSettings settings{arguments.real("tau_start"), arguments.real("tau_end"), seed,
                                     geometry.evict_point, geometry.tokens};
    Recipe recipe = evict_by_row_sums<NoisySoftmax>(arguments, geometry, settings);
    recipe.schedule = own(Schedule::from_evict_point(arguments.count("every")));
    recipe.protect = own(ProtectRule([recent = arguments.real("recent")](TokenCount budget) {
      return Protect{0, static_cast<TokenCount>(
                            std::floor(recent / 100 * static_cast<double>(budget) + 1e-9))};
    }));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
