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

namespace kvspan::policies {

// q ('q'), k ('k') or v ('v') of rows [begin, end) of one stored layer, widened.
struct LayerVectors {
  RowIndex begin = 0;
  int heads = 0, dim = 0;
  std::vector<float> data;  // [rows, heads, dim]
  [[nodiscard]] std::span<const float> at(RowIndex row, int head) const {
    const auto n = static_cast<std::size_t>(dim);
    const auto i = static_cast<std::size_t>((row - begin) * heads + head);
    return {data.data() + i * n, n};
  }
};
// before_rope: the rotary embedding undone; without rope_* fields vectors are taken as they are.
[[nodiscard]] LayerVectors read_vectors(const Trace& trace, int layer, char which, RowIndex begin,
                                        RowIndex end, bool before_rope = false);

// Largest probability that a key receives in rows [max(key + gap, begin), end) of the full cache, over
// the query heads of its group; out [kv_heads][end], 0 where there is no such row.
[[nodiscard]] std::vector<std::vector<float>> largest_future(const Trace& trace, int layer,
                                                             RowIndex gap, RowIndex begin,
                                                             RowIndex end);

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

// One policy that can be fitted. Rows [from, end) are the samples; end is all that may be looked at.
struct FittedScorer {
  std::string name, features, label;
  std::vector<std::string> methods;
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

// Models of one layer fitted on rows [0, end): what weights=self means.
[[nodiscard]] std::vector<Regressor> fit_layer(const FittedScorer& scorer, const Trace& trace,
                                               int layer, RowIndex end, const FitOptions& options);

// What `kvspan fit` does. Without test traces the first half of every training prompt trains, and the
// second half tests.
struct FitOutcome {
  RegressorSet set;     // `about` filled in
  std::string measure;  // "AUC" or "Kendall tau"
  struct Layer {
    std::size_t train_rows = 0, test_rows = 0;  // of all heads
    double train = 0, test = 0;                 // mean over heads and traces
  };
  std::vector<Layer> layers;
  [[nodiscard]] Layer total() const;
};
// Errors: ConfigError on a method that the scorer does not have, or traces that do not go together.
[[nodiscard]] FitOutcome fit_models(const FittedScorer& scorer, const std::vector<Trace>& train,
                                    const std::vector<Trace>& test, const FitOptions& options,
                                    const std::function<void(double done)>& progress,
                                    const std::function<bool()>& cancelled);

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
