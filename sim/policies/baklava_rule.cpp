// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/baklava_rule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {
namespace {

constexpr std::array<double, 9> kPowers = {0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4};
constexpr TokenCount kLeastRecent = 4;

// Numbers proportional to the weights, between `least` and `most`, whose sum is `mean` each.
//   REQUIRES: least <= mean <= most, weights >= 0.
std::vector<TokenCount> water_fill(std::vector<double> weights, TokenCount mean, TokenCount least,
                                   TokenCount most) {
  const double heaviest = *std::max_element(weights.begin(), weights.end());
  for (double& w : weights) w = heaviest > 0 ? std::max(w / heaviest, 1e-12) : 1.0;
  const auto lowest = static_cast<double>(least);
  const auto highest = static_cast<double>(most);
  const TokenCount total = mean * std::ssize(weights);
  const auto level = [&](double factor, double w) {
    return std::clamp(factor * w, lowest, highest);
  };
  double low = 0;
  double high = highest * 1e12;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (const double w : weights) sum += level(middle, w);
    (sum < static_cast<double>(total) ? low : high) = middle;
  }
  std::vector<TokenCount> out;
  std::vector<double> fraction;
  for (const double w : weights) {
    const double exact = level(high, w);
    out.push_back(static_cast<TokenCount>(std::floor(exact + 1e-9)));
    fraction.push_back(exact - static_cast<double>(out.back()));
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::llround(fraction[a] * 1e6) > std::llround(fraction[b] * 1e6);
  });
  TokenCount rest = total - std::accumulate(out.begin(), out.end(), TokenCount{0});
  for (std::size_t i = 0; rest > 0; i = (i + 1) % order.size()) {
    if (out[order[i]] >= most) continue;
    ++out[order[i]];
    --rest;
  }
  return out;
}

}  // namespace

TokenCount Allocation::capacity(const LayerShape& shape, int head, const Sizing& sizing) const {
  if (sizing.tokens == kAll) return kAll;
  const std::scoped_lock lock(mutex_);
  auto known = known_.find(sizing.tokens);
  if (known == known_.end())
    known = known_.emplace(sizing.tokens, spread(sizing.tokens, power_of(sizing.tokens))).first;
  return known->second[index(shape.layer) * importance_[0].size() + index(head)];
}

double Allocation::power_of(TokenCount budget) const {
  if (power_) return *power_;
  if (calibration_ == nullptr) return 1;
  double best = kPowers[0];
  double least = HUGE_VAL;
  for (const double power : kPowers) {
    const double lost = lost_mass(spread(budget, power));
    if (lost < least - 1e-12) {
      least = lost;
      best = power;
    }
  }
  return best;
}

std::vector<TokenCount> Allocation::spread(TokenCount budget, double power) const {
  std::vector<double> weights;
  double heaviest = 0;
  for (const auto& layer : importance_) {
    for (const double i : layer) heaviest = std::max(heaviest, i);
  }
  for (const auto& layer : importance_) {
    for (const double i : layer)
      weights.push_back(heaviest > 0 ? std::pow(i / heaviest, power) : 1.0);
  }
  return water_fill(std::move(weights), budget, std::min(budget, sinks_ + kLeastRecent),
                    std::max<TokenCount>(budget, prompt_));
}

double Allocation::lost_mass(const std::vector<TokenCount>& budgets) const {
  double lost = 0;
  std::size_t i = 0;
  for (const auto& layer : calibration_->lost) {
    for (const auto& by_distance : layer) {
      const TokenCount window = std::max<TokenCount>(0, budgets[i++] - sinks_) *
                                calibration_->rows / std::max<RowIndex>(1, prompt_);
      if (window < std::ssize(by_distance)) lost += by_distance[index(window)];
    }
  }
  return lost;
}

}  // namespace kvspan::policies
