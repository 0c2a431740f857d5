// SPDX-License-Identifier: Apache-2.0
// How BaKlaVa-like budgets become numbers of tokens.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "sim/policies/baklava_fit.h"

namespace kvspan::policies {

class Allocation final : public Budget {
 public:
  //   importance [stored layers][kv_heads]; calibration: null if there is none
  Allocation(HeadScores importance, std::shared_ptr<const Calibration> calibration,
             TokenCount sinks, std::optional<double> power, RowIndex prompt)
      : importance_(std::move(importance)),
        calibration_(std::move(calibration)),
        sinks_(sinks),
        power_(power),
        prompt_(prompt) {}

  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override;
  // The exponent: given, or the one of the grid that loses least; the first of equals.
  [[nodiscard]] double power_of(TokenCount budget) const;

 private:
  [[nodiscard]] std::vector<TokenCount> spread(TokenCount budget, double power) const;
  // Over all heads, with windows in proportion to the calibration's length.
  [[nodiscard]] double lost_mass(const std::vector<TokenCount>& budgets) const;

  HeadScores importance_;
  std::shared_ptr<const Calibration> calibration_;
  TokenCount sinks_;
  std::optional<double> power_;
  RowIndex prompt_;
  mutable std::mutex mutex_;                                     // layers run side by side
  mutable std::map<TokenCount, std::vector<TokenCount>> known_;  // [layers * kv_heads] by budget
};

}  // namespace kvspan::policies
