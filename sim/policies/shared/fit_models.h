// SPDX-License-Identifier: Apache-2.0
// What `kvspan fit` does: models of every layer and head, and how well they do.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "sim/policies/shared/fitted.h"

namespace kvspan::policies {

// Without test traces the first half of every training prompt trains, and the
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

}  // namespace kvspan::policies
