// SPDX-License-Identifier: Apache-2.0
// Knorm: keeps the keys of the smallest norm, which tend to receive the most attention. The score,
// -||k||, is known when an entry is born, so that any schedule may use it.
// Source: Devoto et al., arXiv 2406.11430; code alessiodevoto/l2compress; kvpress KnormPress. The
// authors' code rounds the share that it keeps up (rounding=ceil), leaves prompts shorter than
// prune_after alone and the model's first two layers (skip=2, as do the chunked runs of arXiv
// 2506.17121); kvpress, and the default here, round down and leave none. The unchunked L2 runs of
// arXiv 2506.17121 keep 64 local tokens on top and cut again in every decode row: not offered.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include <fmt/format.h>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// The authors' number of tokens to keep: ceil(share * rows), formed in doubles as in their Python.
class AsAuthors final : public Budget {
 public:
  AsAuthors(Amount size, bool up, RowIndex prune_after)
      : size_(std::move(size)), up_(up), prune_after_(prune_after) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    if (sizing.rows < prune_after_) return kAll;
    const bool share = size_.kind == Amount::Kind::share;
    if (!up_ || !share || sizing.tokens != size_.share_of(sizing.rows)) return sizing.tokens;
    const std::string literal = fmt::format("{}e-{}", size_.mantissa, size_.decimals + 2);
    return static_cast<TokenCount>(
        std::ceil(std::strtod(literal.c_str(), nullptr) * static_cast<double>(sizing.rows)));
  }

 private:
  Amount size_;
  bool up_;
  RowIndex prune_after_;
};

}  // namespace

PolicyEntry knorm() {
  PolicyEntry entry;
  entry.name = "knorm";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps the keys of the smallest norm, once, after the prompt";
  entry.source = "Devoto et al. 2024, arXiv 2406.11430";
  entry.evidence = "code read";
  entry.differs =
      "the authors leave the first two layers alone (skip=2), round the kept share up "
      "(rounding=ceil) and cut no prompt shorter than prune_after (2048 by default there, 1000 and "
      "10 in scripts); kvpress does none of this";
  entry.needs = "k";
  entry.parameters = {budget_parameter(),
                      {.name = "skip",
                       .fallback = "0",
                       .unit = "layers",
                       .help = "first layers of the model that keep everything",
                       .range = {0, 1e6}},
                      {.name = "rounding",
                       .kind = Parameter::Kind::word,
                       .fallback = "floor",
                       .help = "of a share: floor, or ceil as the authors do",
                       .choices = {"floor", "ceil"}},
                      {.name = "prune_after",
                       .fallback = "0",
                       .unit = "tokens",
                       .help = "shorter prompts are left alone"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = birth_scorer({.k = true}, [](const LayerShape& shape) -> BirthValues {
      return [group = shape.heads / shape.kv_heads,
              norms = std::make_shared<SquaredNorms>(Vectors::keys)](
                 const View& view, int head, TokenIndex begin, TokenIndex /*end*/,
                 std::span<double> out) {
        std::vector<TokenIndex> born(out.size());
        std::iota(born.begin(), born.end(), begin);
        std::ranges::transform(norms->of(view, head / group, born), out.begin(),
                               [](double squared) { return -std::sqrt(squared); });
        round_sums(out);
      };
    });
    scoring.at_birth = true;
    scoring.sharing = Sharing::always;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    const RowIndex prune_after = arguments.count("prune_after");
    if (const bool up = arguments.is("rounding", "ceil"); up || prune_after > 0) {
      recipe.shape =
          by_default(std::make_shared<AsAuthors>(arguments.amount("budget"), up, prune_after));
    }
    recipe.full_layers = static_cast<int>(arguments.count("skip"));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
