// SPDX-License-Identifier: Apache-2.0
// LFU with decay: how much an entry was read, where what was read `age` rows ago counts decay^age.
//   f_j = sum over rows of p'_j decay^age
// The smallest f leaves, after the prompt and after every decode row.
#include "sim/policies/shared/row_sums.h"

namespace kvspan::policies {
namespace {

class DecayedSums final : public RowSums {
 public:
  DecayedSums(const LayerShape& shape, double decay) : RowSums(shape), decay_(decay) {}

 private:
  void add(std::span<const double> p, std::span<double> sums) const override {
    for (std::size_t i = 0; i < p.size(); ++i) sums[i] = decay_ * sums[i] + p[i];
  }
  double decay_;
};

}  // namespace

PolicyEntry lfu_decay() {
  PolicyEntry entry;
  entry.name = "lfu_decay";
  entry.kind = MethodKind::eviction;
  entry.summary = "drops what was read least, where older reads count less, in decode too";
  entry.source = "CONTRIBUTING.md";
  entry.evidence = "definition";
  entry.needs = "q and k, or probabilities of all rows";
  entry.parameters = {budget_parameter(),
                      {.name = "decay",
                       .kind = Parameter::Kind::real,
                       .fallback = "0.9",
                       .help = "what a read is still worth a row later",
                       .range = {0, 1}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    return evict_by_row_sums<DecayedSums>(arguments, geometry, arguments.real("decay"));
  };
  return entry;
}

}  // namespace kvspan::policies
