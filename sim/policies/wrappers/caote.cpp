// SPDX-License-Identifier: Apache-2.0
// caote(policy): what the attention's output would lose. With a the policy's scores of the entries
// that may leave, divided by their sum, and o = sum of a_i v_i, dropping entry j alone and scaling
// up the rest moves o by exactly
//   c_j = a_j / (1 - a_j) x ||o - v_j||_2
// and the smallest c leaves. fast: the mean of the values stands for o (FastCAOTE).
// Source: Goel et al., arXiv 2504.14051 (secondary: the formula, and that scores which are no
// probabilities, H2O's sums, are normalised; its code is not public). Where query heads share a KV
// head, the policy's own score of the group is taken. The last entry of all has no rest: it stays.
#include <cmath>
#include <numeric>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

constexpr double kNoRest = 3e38;  // as large as fp32 allows

class OutputErrors final : public Scorer {
 public:
  OutputErrors(std::unique_ptr<Scorer> inner, std::string name, bool fast)
      : inner_(std::move(inner)), name_(std::move(name)), fast_(fast) {}
  // q and k: scores without slack, so that a score trace is refused.
  Needs needs() const override {
    Needs out = inner_->needs();
    out.merge({.q = true, .k = true, .v = true});
    return out;
  }
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    inner_->observe(view, begin, end);
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    (void)inner_->score(view, head, entries, out);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i] >= 0) continue;
      throw ConfigError(fmt::format(
          "caote({}) has no meaning: it takes scores for shares of attention, and {} ranks by "
          "negative numbers ({:g} for token {})",
          name_, name_, out[i], entries[i]));
    }
    const double sum = std::accumulate(out.begin(), out.end(), 0.0);
    const auto dim = index(view.shape().v_dim);
    const std::vector<float> values =
        vectors_of(view, Vectors::values, view.shape().kv_head(head), entries);
    const std::vector<double> centre = centre_of(values, dim, out, sum);
    for (std::size_t i = 0; i < out.size(); ++i) {
      double square = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const double off = centre[d] - static_cast<double>(values[i * dim + d]);
        square += off * off;
      }
      const double rest = sum - out[i];
      if (out[i] > 0) out[i] = rest > 0 ? out[i] / rest * std::sqrt(square) : kNoRest;
    }
    round_sums(out);
    return 0;
  }

 private:
  [[nodiscard]] std::vector<double> centre_of(std::span<const float> values, std::size_t dim,
                                              std::span<const double> scores, double sum) const {
    std::vector<double> out(dim, 0.0);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const double share = fast_     ? 1.0 / static_cast<double>(scores.size())
                           : sum > 0 ? scores[i] / sum
                                     : 0.0;
      for (std::size_t d = 0; d < dim; ++d)
        out[d] += share * static_cast<double>(values[i * dim + d]);
    }
    return out;
  }

  std::unique_ptr<Scorer> inner_;
  std::string name_;
  bool fast_;
};

}  // namespace

PolicyEntry caote() {
  PolicyEntry entry;
  entry.name = "caote";
  entry.kind = MethodKind::wrapper;
  entry.summary =
      "ranks by what the attention's output would lose, with a policy's scores as shares";
  entry.source = "Goel et al. 2025, arXiv 2504.14051";
  entry.evidence = "secondary";
  entry.differs =
      "the shares are of the entries that may leave; of a group's query heads the policy's own "
      "reduction is taken, which the summary does not tell; sets that heads share (tova) are "
      "refused";
  entry.needs = "what the inner policy needs, and q, k and v";
  entry.wrapper = true;
  entry.parameters = {{.name = "fast",
                       .kind = Parameter::Kind::flag,
                       .fallback = "false",
                       .help = "the mean of the values in place of the output"}};
  entry.wrap = [](Arguments& arguments, const Geometry& /*geometry*/, Recipe inner) {
    require_ranking(arguments, inner);
    Scoring& scoring = inner.scorer.value;
    require_scores_of_heads(arguments, inner);
    if (!inner.more_rules.empty())
      refuse(arguments, inner, fmt::format("{} ranks by more than one rule", inner.name));
    scoring.make = [make = scoring.make, name = inner.name,
                    fast = arguments.flag("fast")](const LayerShape& shape) {
      return std::make_unique<OutputErrors>(make(shape), name, fast);
    };
    scoring.sharing = Sharing::none;
    scoring.at_birth = false;
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
