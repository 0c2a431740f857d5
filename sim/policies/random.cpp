// SPDX-License-Identifier: Apache-2.0
// Random eviction: every entry draws one rank at birth and keeps it, so that budgets nest and the
// result depends on neither threads nor order. The control of every eviction study (kvpress).
#include "sim/base/random.h"

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class Rank final : public Scorer {
 public:
  explicit Rank(std::uint64_t layer_seed) : layer_seed_(layer_seed) {}
  double score(const View& /*view*/, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const std::uint64_t head_seed = splitmix64(layer_seed_ ^ static_cast<std::uint64_t>(head));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::uint64_t rank = splitmix64(head_seed ^ static_cast<std::uint64_t>(entries[i]));
      out[i] = static_cast<double>(rank >> 11U);  // the 53 bits that a double holds
    }
    return 0;
  }

 private:
  std::uint64_t layer_seed_;
};

}  // namespace

PolicyEntry random() {
  PolicyEntry entry;
  entry.name = "random";
  entry.kind = MethodKind::eviction;
  entry.summary = "evicts by a fixed random rank, after the prompt and in every decode row";
  entry.source = "control; kvpress RandomPress";
  entry.evidence = "definition";
  entry.needs = "nothing";
  entry.parameters = {budget_parameter(), seed_parameter("of the ranks")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::uint64_t seed = seed_of(arguments, geometry);
    Scoring scoring;
    scoring.make = [seed](const LayerShape& shape) {
      const std::uint64_t mixed = splitmix64(seed) ^ static_cast<std::uint64_t>(shape.model_layer);
      return std::make_unique<Rank>(splitmix64(mixed));
    };
    scoring.by_position = true;
    scoring.at_birth = true;
    scoring.evicts_in_decode = true;
    return budgeted(arguments, geometry, own(scoring), by_default(Schedule::from_evict_point()));
  };
  return entry;
}

}  // namespace kvspan::policies
