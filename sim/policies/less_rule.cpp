// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/less_rule.h"

#include <limits>
#include <numbers>

#include "sim/base/random.h"
#include "sim/policies/less_fit.h"
#include "sim/policy/passes.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kRows = 24;  // of a factorisation, for every query head

// At most kRows of [begin, end), evenly.
std::vector<RowIndex> spread(RowIndex begin, RowIndex end) {
  begin = std::min(begin, end - 1);
  return spread_rows(begin, end, std::min(kRows, end - begin));
}

// Sums of exp(w) and exp(w) v, relative to the largest w so far.
struct Feature {
  double offset = -std::numeric_limits<double>::infinity();
  double weight = 0;
  Vector values;
  void add(double w, std::span<const float> v) {
    values.resize(v.size(), 0.0);
    if (w > offset) {
      const double shrink = std::exp(offset - w);
      weight *= shrink;
      for (double& x : values) x *= shrink;
      offset = w;
    }
    const double term = std::exp(w - offset);
    weight += term;
    for (std::size_t i = 0; i < v.size(); ++i) values[i] += term * static_cast<double>(v[i]);
  }
  // w: log of phi(q), less the row's maximum.
  void read(double w, std::span<double> numerator, double& denominator) const {
    if (values.empty()) return;
    const double scale = bounded_exp(w + offset);
    denominator += scale * weight;
    for (std::size_t i = 0; i < values.size(); ++i) numerator[i] += scale * values[i];
  }
};

class MeanState final : public VictimState {
 public:
  MeanState(int head, double scale) : head_(head), scale_(scale) {}
  void absorb(const View& view, std::span<const TokenIndex> victims) override {
    for (const TokenIndex t : victims) {
      const std::vector<float> k = view.key(head_, t);
      key_.resize(k.size(), 0.0);
      for (std::size_t c = 0; c < k.size(); ++c) key_[c] += static_cast<double>(k[c]);
      group_.add(0, view.value(head_, t));
    }
  }
  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    double z = 0;
    for (std::size_t c = 0; c < q.size(); ++c) z += static_cast<double>(q[c]) * key_[c];
    group_.read(scale_ * z / group_.weight - max, numerator, denominator);
  }

 private:
  int head_;
  double scale_;
  Vector key_;  // sum
  Feature group_;
};

class RandomFeatures final : public VictimState {
 public:
  RandomFeatures(int head, double scale, const LayerShape& shape, int rank, std::uint64_t seed)
      : head_(head), root_(std::sqrt(scale)), features_(index(rank)) {
    for (int r = 0; r < rank; ++r) {
      directions_.emplace_back();
      for (int c = 0; c < shape.k_dim; ++c) {  // Box and Muller
        const double u = uniform(seed, {shape.layer, head, r, c, 0});
        const double v = uniform(seed, {shape.layer, head, r, c, 1});
        directions_.back().push_back(
            static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v)));
      }
    }
  }
  void absorb(const View& view, std::span<const TokenIndex> victims) override {
    for (const TokenIndex t : victims) {
      const std::vector<float> k = view.key(head_, t);
      const std::vector<float> v = view.value(head_, t);
      for (std::size_t r = 0; r < features_.size(); ++r) features_[r].add(feature(k, r), v);
    }
  }
  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override {
    const double rank = static_cast<double>(features_.size());
    for (std::size_t r = 0; r < features_.size(); ++r)
      features_[r].read(feature(q, r) - std::log(rank) - max, numerator, denominator);
  }

 private:
  [[nodiscard]] double feature(std::span<const float> x, std::size_t r) const {
    return root_ * dot(directions_[r], x) - root_ * root_ * dot(x, x) / 2;
  }
  int head_;
  double root_;
  std::vector<std::vector<float>> directions_;
  std::vector<Feature> features_;
};

}  // namespace

std::unique_ptr<VictimState> make_less_state(const LessSettings& s, const View& view, int head) {
  using Variant = LessSettings::Variant;
  const double scale = view.score_scale();
  if (s.variant == Variant::mean) return std::make_unique<MeanState>(head, scale);
  if (s.variant == Variant::favor)
    return std::make_unique<RandomFeatures>(head, scale, view.shape(), s.rank, s.seed);
  const bool future = s.variant == Variant::oracle;
  const RowIndex begin = future ? std::max(view.pass().end, view.pass().evict_point)
                                : std::max<RowIndex>(0, view.pass().end - kRows);
  return std::make_unique<Factors>(head, scale, s.rank, view,
                                   spread(begin, future ? s.tokens : view.pass().end), future,
                                   s.seed);
}

}  // namespace kvspan::policies
