// SPDX-License-Identifier: Apache-2.0
// LESS: an evictor (H2O, or a composed one) whose victims are merged into a state of constant size,
// which adds to the attention of later rows as a linear attention of rank R does:
//   out = (phi(q) H + sum_i exp(z_i) v_i) / (phi(q) z + sum_i exp(z_i)),   z_i = q . k_i scale
//   for each victim:  H += psi(k)^T v,   z += psi(k)^T                     one state per KV head
// Source: Dong et al., arXiv 2402.09398; code hdong920/LESS. phi and psi are small networks trained
// per layer and head there; H and z are fp32. The code knows MHA only; under GQA the state is per
// KV head and phi per query head (natural reading).
//
// The trained kernels are not here. What stands in for them, all with the published bytes:
//   fit     a non-negative factorisation of rank R of what the last 24 rows of each query head
//           before the first merge gave to the victims (multiplicative updates): psi of a victim is
//           fitted to these rows; phi_r(q) = exp(s_r z(q, a_r) + b_r), a_r the mean key under
//           psi_r. It is fitted to this prompt, where the published kernels are trained once for a
//           model
//   favor   R positive random features of exp(z): exp(w.x - |x|^2/2), w normal, x = sqrt(scale) q,
//           k. Unbiased, with a large variance
//   mean    one group: count times exp(z) of the mean key, mean value
//   oracle  the same factorisation over 24 rows to come, and phi(q) of every row is what fits all
//           its victims best. It reads the future: a bound (as good as its local optimum)
//   plus    no state: R / 2 more entries, about its size (the authors' Baseline+: 4 for R = 8)
//   none    no state: the evictor
// States are held in double here, whatever `state` charges. Softcapped logits are not capped again.
#include "sim/policies/less_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

using Variant = LessSettings::Variant;

// The budget, and the entries that the state could have been.
class More final : public Budget {
 public:
  explicit More(TokenCount more) : more_(more) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens == kAll ? kAll : sizing.tokens + more_;
  }

 private:
  TokenCount more_;
};

const char* note_of(const std::string& variant) {
  if (variant == "fit")
    return "stand-in: kernels fitted to the prompt's last rows; not the authors' weights";
  if (variant == "favor") return "stand-in: random features; not the authors' weights";
  if (variant == "mean") return "stand-in: one mean key and value; not the authors' weights";
  if (variant == "oracle") return "bound: a factorisation of rows to come (reads the future)";
  return "the evictor without LESS's state, for comparison";
}

}  // namespace

PolicyEntry less() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "less";
  entry.kind = MethodKind::merging;
  entry.summary = "an evictor whose victims live on in a low-rank state of constant size";
  entry.source = "Dong et al. 2024, arXiv 2402.09398; code hdong920/LESS";
  entry.evidence = "code read";
  entry.differs =
      "MHA only in the code: states per KV head, features per query head; the learned "
      "kernels are replaced by stand-ins of the same size (theirs of k ends in an absolute value); "
      "their budget is a share of the model's longest context, here of the prompt";
  entry.needs =
      "q and k, or probabilities of all rows (or column_mass of the prompt and all decode rows); "
      "q, "
      "k and v for the error of the output";
  entry.parameters = {
      budget_parameter(),
      {.name = "rank", .fallback = "8", .help = "of the state", .range = {1, 1024}},
      {.name = "variant",
       .kind = Kind::word,
       .fallback = "fit",
       .help = "what stands in for the trained kernels",
       .choices = {"fit", "favor", "mean", "plus", "none", "oracle"}},
      {.name = "state",
       .kind = Kind::word,
       .fallback = "fp32",
       .help = "precision that is charged",
       .choices = {"fp32", "fp16"}},
      {.name = "weights",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "paper: charge the published kernels' weights, 16-bit, hidden size 512",
       .choices = {"paper", "none"}},
      {.name = "seed",
       .fallback = "auto",
       .help = "of favor, fit and oracle; auto: --seed",
       .range = {0, 1e15}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string variant = arguments.text("variant");
    const std::int64_t rank = arguments.count("rank");
    Recipe recipe = budgeted(arguments, geometry, by_default(column_sum_scoring()),
                             by_default(Schedule::from_evict_point()));
    recipe.protect = by_default(protect_newest_half());
    recipe.charge.entry = 4;
    recipe.notes.emplace_back(note_of(variant));
    if (variant == "plus") {
      recipe.shape = by_default(std::make_shared<More>((rank + 1) / 2));
    }
    if (variant == "plus" || variant == "none") return recipe;
    recipe.bound = variant == "oracle";
    LessSettings s;
    s.variant = variant == "fit"     ? Variant::fit
                : variant == "favor" ? Variant::favor
                : variant == "mean"  ? Variant::mean
                                     : Variant::oracle;
    s.rank = static_cast<int>(rank);
    s.seed = seed_of(arguments, geometry);
    s.tokens = geometry.tokens;
    Storing store;
    store.make = [s](const LayerShape& shape) {
      return std::make_unique<VictimStates>(
          [s](const View& view, int head) { return make_less_state(s, view, head); }, shape);
    };
    store.alters_vectors = true;
    recipe.store = own(std::move(store));
    // H and z of every KV head, and two networks of two layers for every query head.
    const std::int64_t layers = geometry.layers();
    const std::int64_t number = arguments.is("state", "fp32") ? 4 : 2;
    recipe.charge.once = layers * geometry.kv_heads * (rank * geometry.v_dim + rank) * number;
    if (arguments.is("weights", "paper")) {
      const std::int64_t kernels = 2 * 512 * (geometry.k_dim + rank) + rank * rank + 2 * rank;
      recipe.charge.once += layers * geometry.query_heads * kernels * 2;
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
