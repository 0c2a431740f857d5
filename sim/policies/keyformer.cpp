// SPDX-License-Identifier: Apache-2.0
// Keyformer: H2O's shape with another score. Every row adds, per query head, a noisy softmax of its
// logits over the entries that it reads, so that the tokens kept do not take all of the mass that
// the evicted ones leave behind:
//   f_j += softmax_j((z_j + g_j) / tau),   g = -log(-log u), u uniform, drawn anew for every cell
//   tau = tau_start + itr (tau_end - tau_start) / max_new,   itr = decode rows so far, 0 in the prompt
// The largest sums and the newest `recent` of the budget stay; sums run over the group's query heads.
// Source: Adnan et al., arXiv 2403.09054; code d-matrix-ai/keyformer-llm. The code's default is a
// budget of 60 % of the prompt, the headline runs use 50 %; its MPT variant `old_bias` acts on every
// 8th decode row (every=8). The code first shrinks the cache at the first decode step, here it
// happens after the prompt. Draws are counter-based, so they differ from torch's for any seed.
#include <algorithm>
#include <cmath>

#include "sim/base/random.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

struct Settings {
  double tau_start, tau_end;
  std::uint64_t seed;
  RowIndex evict_at, tokens;
};

class NoisySoftmax final : public Scorer {
 public:
  NoisySoftmax(const Settings& settings, const LayerShape& shape)
      : settings_(settings), sums_(index(shape.query_heads)) {
    for (auto& sums : sums_) sums.assign(index(settings.tokens), 0.0);
  }
  Needs needs() const override { return {.observe = Observe::always, .q = true, .k = true}; }

  void observe(const View& view, RowIndex begin, RowIndex end) override {
    const LayerShape& shape = view.shape();
    std::vector<double> f;
    for (RowIndex row = begin; row < end; ++row) {
      for (int q = 0; q < shape.query_heads; ++q) {
        std::span<const TokenIndex> entries = view.resident(q / shape.group());
        entries = entries.first(
            index(std::upper_bound(entries.begin(), entries.end(), row) - entries.begin()));
        f.resize(entries.size());
        noisy_softmax(view, q, row, entries, f);
        for (std::size_t i = 0; i < f.size(); ++i) sums_[index(q)][index(entries[i])] += f[i];
      }
    }
  }

  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double slack =
        reduce_group(view.shape(), head, Group::sum, out, [&](int q, std::span<double> sums) {
          for (std::size_t i = 0; i < entries.size(); ++i)
            sums[i] = sums_[index(q)][index(entries[i])];
          return 0.0;
        });
    round_sums(out);
    return slack;
  }

 private:
  // exp((z + g) / tau) = (exp(z) / x)^(1 / tau) with x = -log u, and p' is exp(z) up to a factor.
  void noisy_softmax(const View& view, int q, RowIndex row, std::span<const TokenIndex> entries,
                     std::span<double> f) const {
    (void)view.probabilities(q, row, entries, f);
    const std::uint64_t cell =
        splitmix64(splitmix64(splitmix64(splitmix64(settings_.seed) ^
                                         static_cast<std::uint64_t>(view.shape().model_layer)) ^
                              static_cast<std::uint64_t>(q)) ^
                   static_cast<std::uint64_t>(row));
    const double power = 1.0 / tau(row);
    double sum = 0;
    for (std::size_t i = 0; i < f.size(); ++i) {
      f[i] /= -std::log(uniform(cell, {entries[i]}));
      if (power != 1.0) f[i] = std::pow(f[i], power);
      sum += f[i];
    }
    if (!(sum > 0)) return;
    for (double& value : f) value /= sum;
  }

  [[nodiscard]] double tau(RowIndex row) const {
    if (row < settings_.evict_at) return settings_.tau_start;
    const auto decoded = static_cast<double>(row - settings_.evict_at + 1);
    const auto most = static_cast<double>(settings_.tokens - settings_.evict_at);
    return settings_.tau_start + decoded * (settings_.tau_end - settings_.tau_start) / most;
  }

  Settings settings_;
  std::vector<std::vector<double>> sums_;  // [query_heads][tokens]
};

}  // namespace

PolicyEntry keyformer() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "keyformer";
  entry.klass = "eviction";
  entry.summary = "heavy hitters by a noisy softmax that warms up, plus the newest tokens";
  entry.source = "Adnan et al. 2024, arXiv 2403.09054";
  entry.evidence = "code read";
  entry.differs =
      "the code first shrinks at the first decode step, here at the prompt's end; one of "
      "its variants evicts every 8 rows (every=8)";
  entry.needs = "q and k";
  entry.parameters = {
      budget_parameter(),
      {"recent", Kind::real, "30", "% of the budget", "newest kept, inside the budget", {}, 0, 100},
      {"tau_start", Kind::real, "1", "", "temperature in the prompt", {}, 0.01, 100},
      {"tau_end", Kind::real, "2", "", "temperature at the last row", {}, 0.01, 100},
      {"every", Kind::count, "1", "rows", "acts after every k-th decode row", {}, 1, 1e6},
      {"seed", Kind::count, "auto", "", "of the noise; auto: --seed", {}, 0, 9e15}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::uint64_t seed = seed_of(arguments, geometry);
    const Settings settings{arguments.real("tau_start"), arguments.real("tau_end"), seed,
                            geometry.evict_at, geometry.tokens};
    Scoring scoring;
    scoring.make = [settings](const LayerShape& shape) {
      return std::make_unique<NoisySoftmax>(settings, shape);
    };
    scoring.evicts_in_decode = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring),
                             own(Schedule{false, true, arguments.count("every")}));
    recipe.protect = own(ProtectRule([recent = arguments.real("recent")](TokenCount budget) {
      return Protect{0, static_cast<TokenCount>(
                            std::floor(recent / 100 * static_cast<double>(budget) + 1e-9))};
    }));
    recipe.charge.entry = 4;  // one fp32 sum per entry of a stored head
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
