// SPDX-License-Identifier: Apache-2.0
// Policies whose published form has trained weights: what they are fitted on here, and how well.
// A fit looks at rows [0, end) of a trace, never at later ones. Not the authors' weights.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sim/learn/rank_measures.h"
#include "sim/learn/regression.h"
#include "sim/learn/regressor_set.h"
#include "sim/policies/shared/layer_table.h"
#include "sim/policy/memo.h"

namespace kvspan::policies {

struct FitOptions {
  std::string method = "ridge";
  double lambda = 100;
  std::uint64_t seed = 0;
  int steps = 300;              // of a network
  TokenCount budget = 0;        // foresightkv: of the golden evictions, entries
  RowIndex interval = 128;      // foresightkv
  TokenCount window = 256;      // write_gate: local window; locret: local tokens
  double rate = 0.25;           // write_gate: share of entries outside the window with label 1
  int queries = 32;             // judgeq
  bool attention_only = false;  // foresightkv: features of attention alone
};

// One policy that can be fitted. Rows [from, end) are the samples; end is all that may be looked
// at.
struct FittedScorer {
  std::string name, features, label;
  std::vector<std::string> methods;
  bool reads_replay = false;  // its traces hold rows of `kvspan capture --replay`
  // Samples of the heads of one stored layer (judgeq: of the query heads).
  std::function<std::vector<Samples>(const Trace&, int layer, RowIndex from, RowIndex end,
                                     const FitOptions&)>
      gather;
  // Turns raw labels into labels, over all layers; may be empty.
  std::function<void(std::vector<std::vector<Samples>>&, const FitOptions&)> label_all;
  std::function<Regressor(const Samples&, const FitOptions&)> fit;
  // Agreement with the label: AUC of a logistic regression, else Kendall's tau.
  std::function<double(const Regressor&, const Samples&, const Trace&, int layer, int head,
                       RowIndex from, RowIndex end)>
      quality;
};
[[nodiscard]] const std::vector<FittedScorer>& fitted_scorers();
[[nodiscard]] const FittedScorer& fitted_scorer(const std::string& name);  // Errors: ConfigError
[[nodiscard]] FittedScorer foresightkv_fit();
[[nodiscard]] FittedScorer write_gate_fit();
[[nodiscard]] FittedScorer judgeq_fit();
[[nodiscard]] FittedScorer locret_fit();
[[nodiscard]] FittedScorer kvzap_fit();
[[nodiscard]] FittedScorer fast_kvzip_fit();

// Models of one layer fitted on rows [0, end): what weights=self means.
[[nodiscard]] std::vector<Regressor> fit_layer(const FittedScorer& scorer, const Trace& trace,
                                               int layer, RowIndex end, const FitOptions& options);

// Where the models of a layer come from.
struct FitSource {
  std::shared_ptr<const RegressorSet>
      weights;  // of a file; null: fitted on rows [0, fit_end) of `trace`
  FitOptions fit;
  RowIndex fit_end = 0;
  const Trace* trace = nullptr;
  std::shared_ptr<Memo> memo = nullptr;  // where fits are kept; may be null
};

// The models of one layer, fitted when somebody first asks.
class LayerModels {
 public:
  LayerModels(std::string scorer, FitSource source);
  // REQUIRES: the same layer at every call. Errors: those of RegressorSet::layer, of a file.
  [[nodiscard]] const std::vector<Regressor>& of(const LayerShape& shape, int heads,
                                                 std::size_t width);

 private:
  std::string scorer_;
  FitSource source_;
  std::shared_ptr<const std::vector<Regressor>> fitted_;
};

// The parameter `weights`, and what it says. `method`: what the file must hold; empty: anything.
[[nodiscard]] Parameter weights_parameter();
[[nodiscard]] std::shared_ptr<const RegressorSet> load_weights(const Arguments& arguments,
                                                               const std::string& method);
// "stand-in: ..." for recipe.notes.
[[nodiscard]] std::string fitted_note(const Arguments& arguments, const std::string& method,
                                      const Geometry& geometry);

// Mean over decisions of Kendall's tau, or AUC of a logistic regression, of a model's outputs.
[[nodiscard]] double agreement(const Regressor& model, const Samples& samples);

}  // namespace kvspan::policies
