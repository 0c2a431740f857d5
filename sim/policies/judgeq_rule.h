// SPDX-License-Identifier: Apache-2.0
// The scorer of Judge Q: where its votes come from, pooled.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/layer_table.h"

namespace kvspan::policies {

class JudgeQ final : public Scorer {
 public:
  struct Settings {
    std::string scorer;
    std::shared_ptr<const RegressorSet> weights;
    std::shared_ptr<const LayerTable> table;
    FitOptions fit;
    Group group = Group::mean;
    int kernel = 1;
    RowIndex fit_end = 0;
    Geometry geometry;
  };
  // What the entries of one stored head receive.
  class Votes {
   public:
    virtual ~Votes() = default;
    [[nodiscard]] virtual Needs needs() const { return {}; }
    virtual void of(const View& view, int head, std::span<const TokenIndex> entries,
                    std::span<double> out) = 0;
  };

  explicit JudgeQ(const std::shared_ptr<const Settings>& settings);
  Needs needs() const override { return votes_->needs(); }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  int kernel_;
  std::unique_ptr<Votes> votes_;
};

}  // namespace kvspan::policies
