// SPDX-License-Identifier: Apache-2.0
// merge: what another policy evicts is merged into what stays, by similarity of keys. Every victim
// goes to the survivor of its head whose key has the largest cosine c with its own (the older of
// equals), if c >= `threshold`:
//   w = max(c, 0) x ||v|| / (||v|| + ||v of the survivor||)
//   v of the survivor = (v + sum of w v of its victims) / (1 + sum of w)
// Keys stay as they are; so do bytes and lifetimes, and only outputs change. Norms are those before
// the merge; a survivor goes on with what it holds.
// Source: NVIDIA/kvpress MergingPress (merge_fraction 1), after D2O (Wan et al., arXiv 2406.13035)
// and Token Merging; once after the prompt there, after every decision of the policy here. D2O
// itself, with its moving threshold, is d2o.
#include <algorithm>
#include <cmath>
#include <map>

#include "sim/policies/shared/held_entries.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

constexpr double kFloor = 1e-6;  // of a sum of norms

double norm_of(std::span<const float> x) { return std::sqrt(squared_norm(x)); }

class MergingIntoNearest final : public Store {
 public:
  MergingIntoNearest(double threshold, int heads) : threshold_(threshold), held_(heads) {}
  void age(const View& view, Decision& out) override {
    if (!view.measures_output()) return;
    for (int h = 0; h < view.shape().heads; ++h) {
      const std::vector<TokenIndex> victims = victims_of(h, out);
      if (victims.empty()) continue;
      const std::vector<TokenIndex> stay = survivors(view, h, out);
      if (!stay.empty()) merge_into(view, h, victims, stay, out);
      for (const TokenIndex t : victims) held_.forget(h, t);
    }
  }

 private:
  struct Merged {
    double weight = 0;
    std::vector<double> values;
  };

  void merge_into(const View& view, int head, const std::vector<TokenIndex>& victims,
                  const std::vector<TokenIndex>& stay, Decision& out) {
    const int kv_head = view.shape().kv_head(head);
    const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, stay);
    std::map<std::size_t, Merged> merged;  // by place among those that stay
    for (const TokenIndex t : victims) {
      const NearestKey near = nearest_key(view.key(kv_head, t), keys);
      if (near.cosine < threshold_ || near.cosine <= 0) continue;
      const std::vector<float> v = held_.of(view, head, t);
      const double size = norm_of(v);
      const double w =
          near.cosine * size / (size + norm_of(held_.of(view, head, stay[near.place])) + kFloor);
      Merged& into = merged[near.place];
      into.weight += w;
      add_scaled(w, v, into.values);
    }
    for (const auto& [place, into] : merged) {
      if (into.weight <= 0) continue;
      std::vector<float> v = held_.of(view, head, stay[place]);
      for (std::size_t d = 0; d < v.size(); ++d)
        v[d] = static_cast<float>((static_cast<double>(v[d]) + into.values[d]) / (1 + into.weight));
      held_.change(view, head, stay[place], std::move(v), out);
    }
  }

  double threshold_;
  HeldValues held_;
};

}  // namespace

PolicyEntry merge() {
  PolicyEntry entry;
  entry.name = "merge";
  entry.kind = MethodKind::merging;
  entry.summary = "merges what another policy evicts into the survivors with the nearest keys";
  entry.source = "NVIDIA/kvpress MergingPress, after Wan et al. 2024, arXiv 2406.13035 (D2O)";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "kvpress merges once, after the prompt; D2O's own threshold moves, and its layers share a "
      "budget";
  entry.needs = "q, k and v for the error of the output";
  entry.alone = "it merges what another policy evicts; combine it, as in snapkv(budget=20%)+merge";
  entry.parameters = {{.name = "threshold",
                       .kind = Parameter::Kind::real,
                       .fallback = "0",
                       .help = "least cosine of a merge",
                       .range = {0, 1}}};
  entry.make = [](Arguments& arguments, const Geometry&) {
    Storing store;
    store.make = [threshold = arguments.real("threshold")](const LayerShape& shape) {
      return std::make_unique<MergingIntoNearest>(threshold, shape.heads);
    };
    store.alters_vectors = true;
    Recipe recipe;
    recipe.store = own(std::move(store));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
