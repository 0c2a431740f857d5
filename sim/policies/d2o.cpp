// SPDX-License-Identifier: Apache-2.0
// D2O's merge: what another policy evicts goes into the entries with the nearest keys, or is lost,
// by a threshold that moves. At every decision each victim finds the survivor of its head whose key
// has the largest cosine c with its own (the older of equals). With m the mean of all these c of a
// layer, the threshold becomes
//   m at the layer's first decision, then (1 - beta) x threshold + beta x m
// and the i-th victims of all heads (by token) are merged if the mean of their c reaches it:
//   k, v of the survivor = (k, v + sum of c k, c v of its victims) / (1 + their number)
// Victims and survivors go on with what they hold. Lifetimes and bytes stay as they are; the other
// policy decides by the trace's own keys.
// Source: Wan et al., arXiv 2406.13035; code AIoT-MLSys-Lab/D2O (modeling_llama3_7b_13b_d2o.py:
// alpha = belta = 0.5). The evictor there is H2O with 4 safe sinks, sums from the prompt on, acting
// from the first decode row; layers share the budget by the softmax of minus the variance of their
// prompt's sums, and the first two and the last stay whole: neither is part of this store. It keeps
// one set per query head.
#include "sim/policies/shared/held_entries.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class MovingThreshold final : public Store {
 public:
  MovingThreshold(double beta, int heads) : beta_(beta), held_(heads) {}
  void age(const View& view, Decision& out) override {
    if (!view.measures_output() || out.evictions.empty()) return;
    const int heads = view.shape().heads;
    std::vector<Head> all;
    for (int h = 0; h < heads; ++h) all.push_back(look(view, h, out));
    const std::vector<char> merged = judge(all);
    for (int h = 0; h < heads; ++h) {
      merge_head(view, h, all[index(h)], merged, out);
      for (const TokenIndex t : all[index(h)].victims) held_.forget(h, t);
    }
  }

 private:
  struct Head {
    std::vector<TokenIndex> victims, stay;
    std::vector<NearestKey> near;  // [victims]; empty: nobody stays
  };

  Head look(const View& view, int head, const Decision& so_far) const {
    Head out{victims_of(head, so_far), survivors(view, head, so_far), {}};
    if (out.stay.empty()) return out;
    const std::vector<float> keys = held_.keys(view, head, out.stay);
    for (const TokenIndex t : out.victims)
      out.near.push_back(nearest_key(held_.of(view, head, t).k, keys));
    return out;
  }

  // Moves the threshold; true for the places of victims that are merged.
  std::vector<char> judge(const std::vector<Head>& heads) {
    std::vector<double> sums, counts;  // [places]
    double all = 0, number = 0;
    for (const Head& head : heads) {
      sums.resize(std::max(sums.size(), head.near.size()), 0.0);
      counts.resize(sums.size(), 0.0);
      for (std::size_t i = 0; i < head.near.size(); ++i) {
        sums[i] += head.near[i].cosine;
        counts[i] += 1;
        all += head.near[i].cosine;
        number += 1;
      }
    }
    if (number == 0) return {};
    const double mean = all / number;
    threshold_ = first_ ? mean : (1 - beta_) * threshold_ + beta_ * mean;
    first_ = false;
    std::vector<char> out;
    for (std::size_t i = 0; i < sums.size(); ++i)
      out.push_back(sums[i] / counts[i] >= threshold_ - kRounding ? 1 : 0);
    return out;
  }

  void merge_head(const View& view, int head, const Head& x, const std::vector<char>& merged,
                  Decision& out) {
    struct Sum {
      double number = 1;
      std::vector<double> k, v;
    };
    std::map<std::size_t, Sum> sums;  // by place among those that stay
    for (std::size_t i = 0; i < x.near.size(); ++i) {
      if (merged[i] == 0) continue;
      const HeldEntry victim = held_.of(view, head, x.victims[i]);
      Sum& into = sums[x.near[i].place];
      add_scaled(x.near[i].cosine, victim.k, into.k);
      add_scaled(x.near[i].cosine, victim.v, into.v);
      into.number += 1;
    }
    for (auto& [place, sum] : sums) {
      HeldEntry held = held_.of(view, head, x.stay[place]);
      add_scaled(1, held.k, sum.k);
      add_scaled(1, held.v, sum.v);
      const auto mean = [&](double s) { return static_cast<float>(s / sum.number); };
      std::ranges::transform(sum.k, held.k.begin(), mean);
      std::ranges::transform(sum.v, held.v.begin(), mean);
      held_.change(view, head, x.stay[place], std::move(held), out);
    }
  }

  // A mean of equal numbers reaches them.
  static constexpr double kRounding = 1e-12;
  double beta_;
  double threshold_ = 0;
  bool first_ = true;
  HeldEntries held_;
};

}  // namespace

PolicyEntry d2o() {
  PolicyEntry entry;
  entry.name = "d2o";
  entry.kind = MethodKind::merging;
  entry.summary =
      "merges victims whose keys are near enough, by a moving threshold, into survivors";
  entry.source = "Wan et al. 2024, arXiv 2406.13035; code AIoT-MLSys-Lab/D2O";
  entry.evidence = "code read";
  entry.differs =
      "the store alone: in the code H2O with 4 safe sinks evicts from the first decode row on, "
      "layers share the budget by the variance of their prompt's attention, and three layers stay "
      "whole; it keeps one set per query head";
  entry.needs = "q, k and v for the error of the output";
  entry.alone = "it merges what another policy evicts; combine it, as in h2o(budget=20%)+d2o";
  entry.parameters = {{.name = "beta",
                       .kind = Parameter::Kind::real,
                       .fallback = "0.5",
                       .help = "what the newest mean counts in the threshold",
                       .range = {0, 1}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Storing store;
    store.make = [beta = arguments.real("beta")](const LayerShape& shape) {
      return std::make_unique<MovingThreshold>(beta, shape.heads);
    };
    store.alters_vectors = true;
    Recipe recipe;
    recipe.store = own(std::move(store));
    recipe.charge.once = 4LL * geometry.layers();  // the threshold, fp32
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
