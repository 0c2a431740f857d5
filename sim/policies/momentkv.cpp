// SPDX-License-Identifier: Apache-2.0
// MomentKV's summary: what another policy evicts lives on, in each KV head, as its number n, its
// mean key and mean value, and the covariance C of values with keys. A row with query q, scaled,
// sees the victims to first order about their mean key:
//   sum of exp(q k) = n exp(q mean k),   sum of exp(q k) v = n exp(q mean k) (mean v + C q)
// Source: Li et al., arXiv 2606.01563 (secondary: the abstract names the moments and the closed
// first-order form; two other programs that cite the paper write it so, centred on the mean key).
// How the paper picks victims that its summary explains well is not to be had: another policy does
// it here. Moments are held in double, charged as fp32. Softcapped logits are not capped again.
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/victim_states.h"

namespace kvspan::policies {
namespace {

class Moments final : public VictimState {
 public:
  Moments(const View& view, int head)
      : kv_head_(view.shape().kv_head(head)),
        scale_(view.score_scale()),
        key_(index(view.shape().k_dim), 0.0),
        value_(index(view.shape().v_dim), 0.0),
        products_(key_.size() * value_.size(), 0.0) {}

  void absorb(const View& view, std::span<const TokenIndex> victims) override {
    for (const TokenIndex t : victims) {
      const std::vector<float> k = view.key(kv_head_, t);
      const std::vector<float> v = view.value(kv_head_, t);
      count_ += 1;
      // Means and centred products, one more at a time (Welford).
      std::vector<double> off(v.size());
      for (std::size_t d = 0; d < v.size(); ++d) {
        off[d] = static_cast<double>(v[d]) - value_[d];
        value_[d] += off[d] / count_;
      }
      for (std::size_t c = 0; c < k.size(); ++c) {
        key_[c] += (static_cast<double>(k[c]) - key_[c]) / count_;
        const double rest = static_cast<double>(k[c]) - key_[c];
        for (std::size_t d = 0; d < v.size(); ++d) products_[d * k.size() + c] += off[d] * rest;
      }
    }
  }

  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    double z = 0;
    for (std::size_t c = 0; c < q.size(); ++c) z += scale_ * static_cast<double>(q[c]) * key_[c];
    const double weight = count_ * bounded_exp(z - max);
    denominator += weight;
    for (std::size_t d = 0; d < value_.size(); ++d) {
      double turned = 0;
      for (std::size_t c = 0; c < q.size(); ++c)
        turned += products_[d * key_.size() + c] * static_cast<double>(q[c]);
      numerator[d] += weight * (value_[d] + scale_ * turned / count_);
    }
  }

 private:
  int kv_head_;
  double scale_;
  double count_ = 0;
  std::vector<double> key_, value_;  // means
  std::vector<double> products_;     // [v_dim][k_dim] sums of (v - mean v) (k - mean k)
};

}  // namespace

PolicyEntry momentkv() {
  PolicyEntry entry;
  entry.name = "momentkv";
  entry.kind = MethodKind::merging;
  entry.summary = "victims of another policy live on as count, means and value-key covariance";
  entry.source = "Li et al. 2026, arXiv 2606.01563 (abstract; programs that cite it)";
  entry.evidence = "secondary";
  entry.differs =
      "the paper also picks victims that the summary explains, by a rule that was not to be had: "
      "here another policy picks";
  entry.needs = "q, k and v for the error of the output";
  entry.alone =
      "it merges what another policy evicts; combine it, as in snapkv(budget=20%)+momentkv";
  entry.make = [](Arguments& /*arguments*/, const Geometry& geometry) {
    Storing store;
    store.make = [](const LayerShape& shape) {
      return std::make_unique<VictimStates>(
          [](const View& view, int head) { return std::make_unique<Moments>(view, head); }, shape);
    };
    store.alters_vectors = true;
    Recipe recipe;
    recipe.store = own(std::move(store));
    const std::int64_t k = geometry.k_dim, v = geometry.v_dim;
    recipe.charge.once =
        std::int64_t{geometry.layers()} * geometry.kv_heads * (1 + k + v + k * v) * 4;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
