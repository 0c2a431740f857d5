// SPDX-License-Identifier: Apache-2.0
// The state that LESS folds victims into, and the store that keeps one for each KV head.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// What absorbs the victims of one KV head, and adds them to the attention of a row: `max` is the
// row's largest logit, which numerator and denominator are relative to.
class LessState {
 public:
  virtual ~LessState() = default;
  virtual void fold(const View& view, std::span<const TokenIndex> victims) = 0;
  virtual void add(std::span<const float> q, double max, std::span<double> numerator,
                   double& denominator) const = 0;
};

// exp without overflow: what a victim adds relative to the row's own maximum.
[[nodiscard]] inline double bounded_exp(double x) { return std::exp(std::min(x, 300.0)); }

class Folding final : public Store {
 public:
  enum class Variant : std::uint8_t { fit, favor, mean, oracle };
  struct Settings {
    Variant variant = Variant::fit;
    int rank = 8;
    std::uint64_t seed = 0;
    RowIndex tokens = 0;
  };
  Folding(const Settings& settings, const LayerShape& shape)
      : settings_(settings), group_(shape.group()), states_(index(shape.heads)) {}
  void age(const View& view, Decision& out) override;
  bool adds_output() const override { return folded_; }
  void add_output(int query_head, std::span<const float> q, double max, std::span<double> numerator,
                  double& denominator) override;

 private:
  [[nodiscard]] std::unique_ptr<LessState> make_state(const View& view, int head) const;
  Settings settings_;
  int group_;
  std::vector<std::unique_ptr<LessState>> states_;  // [heads]
  bool folded_ = false;
};

}  // namespace kvspan::policies
