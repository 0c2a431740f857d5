// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/decode_world.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

namespace kvspan::twin::decode {

double fp32(double x) { return static_cast<double>(static_cast<float>(x)); }

bool close(double a, double b) {
  if (std::isinf(a) || std::isinf(b)) return false;
  return a != b && std::abs(a - b) <= kNear * std::max({std::abs(a), std::abs(b), 1e-7});
}

std::vector<int> ranking(const std::vector<int>& from, const std::vector<double>& scores) {
  std::vector<std::size_t> order(from.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  std::vector<int> out;
  for (const std::size_t e : order) out.push_back(from[e]);
  return out;
}

std::vector<int> World::best(const std::vector<int>& from, const std::vector<double>& raw,
                             bool round, int count, bool& near) const {
  std::vector<double> scores = raw;
  if (round) {
    for (double& s : scores) s = fp32(s);
  }
  std::vector<int> order = ranking(from, scores);
  const std::size_t cut = std::min(order.size(), at(std::max(count, 0)));
  const std::set<int> kept(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(cut));
  for (std::size_t a = 0; a < from.size(); ++a) {
    for (std::size_t b = 0; b < from.size(); ++b) {
      const bool unsure = close(raw[a], raw[b]) || (round && !exact() && raw[a] == raw[b]);
      if (unsure && kept.count(from[a]) && !kept.count(from[b])) near = true;
    }
  }
  return {kept.begin(), kept.end()};
}

}  // namespace kvspan::twin::decode
