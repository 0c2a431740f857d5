// SPDX-License-Identifier: Apache-2.0
#include "sim/models/weight_groups.h"

#include <algorithm>

namespace kvspan::config {

using Kind = WeightGroup::Kind;

void Weights::add(const char* group, WeightGroup::Split split, Kind kind,
                  std::initializer_list<Count> factors) {
  Count product = 1;
  bool overflow = false;
  for (const Count f : factors) overflow |= __builtin_mul_overflow(product, f, &product);
  total_ += static_cast<double>(product);
  if (overflow || total_ > 1e15) fields_.fail("more than 10^15 parameters: no such model");
  for (WeightGroup& g : out_.groups) {
    if (g.name == group && g.split == split && g.kind == kind) {
      g.parameters += product;
      return;
    }
  }
  if (product > 0) out_.groups.push_back({group, product, split, kind});
}

void Weights::add_matrices(const char* group, WeightGroup::Split split,
                           const std::vector<int>& layers, std::string_view names, Count elements,
                           Kind kind) {
  const Count kept = std::count_if(layers.begin(), layers.end(),
                                   [&](int layer) { return quantization_.keeps(layer, names); });
  add(group, split, kind, {static_cast<Count>(layers.size()) - kept, elements});
  add(group, split, Kind::kept, {kept, elements});
}

void Weights::add_feed_forward(const char* group, const std::vector<int>& layers,
                               const FeedForwardNames& names, Count elements, Count matrices) {
  const auto split = WeightGroup::Split::sharded;
  if (matrices > 2) add_matrices(group, split, layers, names.gate, elements);
  add_matrices(group, split, layers, names.up, elements);
  add_matrices(group, split, layers, names.down, elements);
}

void Weights::add_experts(const std::vector<int>& layers, Count elements) {
  add_matrices("experts", WeightGroup::Split::sharded, layers,
               "mlp.experts.0.up_proj|mlp.experts.up_proj|mlp.experts.gate_up_proj|"
               "block_sparse_moe.experts.0.w1|feed_forward.experts.gate_up_proj|"
               "feed_forward.experts.0.w1|mixer.experts.0.up_proj",
               elements, Kind::experts);
}

void Weights::widen(Count inner) { out_.inner = std::max(out_.inner, inner); }

}  // namespace kvspan::config
