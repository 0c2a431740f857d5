// SPDX-License-Identifier: Apache-2.0
// Twins of cam and merge, which fold victims into survivors, and of turboquant.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin::stores {
namespace {

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double e : x) sum += e * e;
  return std::sqrt(sum);
}

// What is alive before row b and not lost, in order.
std::vector<int> survivors(const LayerState& s, int h, int b, const std::vector<int>& lost) {
  std::vector<int> out;
  for (int j = 0; j < b; ++j) {
    const bool goes = std::find(lost.begin(), lost.end(), j) != lost.end();
    if (s.entries[at(h)][at(j)].alive && !goes) out.push_back(j);
  }
  return out;
}

}  // namespace

// CaM's draw: the attention of a victim against the mean of the survivors behind it.
void fold_cam(const Setup& u, LayerState& s, int h, Pass pass, const std::vector<int>& lost,
              Outcome& out) {
  if (pass.begin < u.point) return;
  const int group = u.trace.query_heads / u.trace.kv_heads;
  const auto& seen = u.text("cam.attention", "row") == "row" ? s.last_row : s.column_sum;
  const auto attention = [&](int j) {
    double sum = 0;
    for (int g = h * group; g < (h + 1) * group; ++g) sum += seen[at(g)][at(j)] / group;
    return sum;
  };
  std::vector<Entry>& entries = s.entries[at(h)];
  std::map<int, std::vector<double>> more;
  for (const int victim : lost) {
    std::vector<int> behind;
    for (const int j : survivors(s, h, pass.end, lost)) {
      if (j > victim && static_cast<int>(behind.size()) < u.number("cam.merge", 32))
        behind.push_back(j);
    }
    if (behind.empty()) continue;
    double mean = 0;
    for (const int j : behind) mean += attention(j) / static_cast<double>(behind.size());
    const double chance = mean > 0 ? attention(victim) / mean : (attention(victim) > 0 ? 1 : 0);
    const double draw = uniform(static_cast<std::uint64_t>(u.number("cam.seed", 0)),
                                {s.layer->model_layer, h, victim, pass.end});
    ++out.codes;
    if (std::abs(draw - chance) < 1e-5) ++out.near_codes;
    if (draw >= chance) continue;
    for (const int j : behind) {
      std::vector<double>& sum = more[j];
      sum.resize(at(u.trace.v_head_dim), 0.0);
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += entries[at(victim)].v[i] / static_cast<double>(behind.size());
    }
  }
  for (const auto& [j, sum] : more)
    for (std::size_t i = 0; i < sum.size(); ++i) entries[at(j)].v[i] += sum[i];
}

// MergingPress.merge(): a victim's value goes to the survivor of the nearest key.
void fold_merge(const Setup& u, LayerState& s, int h, int b, const std::vector<int>& lost,
                Outcome& out) {
  constexpr double kEpsilon = 1e-6;
  std::vector<Entry>& entries = s.entries[at(h)];
  const std::vector<int> kept = survivors(s, h, b, lost);
  if (kept.empty()) return;
  const double threshold = std::stod(u.text("merge.threshold", "0"));
  std::map<int, std::vector<double>> sums;
  std::map<int, double> weights;
  for (const int victim : lost) {
    int target = -1;
    double most = -kInfinity, second = -kInfinity;
    for (const int j : kept) {
      const std::vector<double>&x = entries[at(victim)].k, &y = entries[at(j)].k;
      double dot = 0;
      for (std::size_t i = 0; i < x.size(); ++i) dot += x[i] * y[i];
      const double cosine = dot / (std::max(norm(x), kEpsilon) * std::max(norm(y), kEpsilon));
      if (cosine > most) {
        // The same key again is as near.
        if (target < 0 || entries[at(target)].k != y) second = std::max(second, most);
        most = cosine;
        target = j;
      } else if (entries[at(target)].k != y) {
        second = std::max(second, cosine);
      }
    }
    ++out.codes;
    if (most - second < 1e-6 || std::abs(most - threshold) < 1e-6) ++out.near_codes;
    if (most < threshold) continue;
    const double own = norm(entries[at(victim)].v), other = norm(entries[at(target)].v);
    const double weight = std::max(most, 0.0) * own / (own + other + kEpsilon);
    std::vector<double>& sum = sums[target];
    sum.resize(at(u.trace.v_head_dim), 0.0);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * entries[at(victim)].v[i];
    weights[target] += weight;
  }
  for (const auto& [j, sum] : sums) {
    for (std::size_t i = 0; i < sum.size(); ++i) {
      double& v = entries[at(j)].v[i];
      v = (v + sum[i]) / (1 + weights[j]);
    }
  }
}

namespace {

// vLLM's solve_lloyd_max(): the best levels of a normal number of variance 1 / d.
std::vector<double> lloyd_max(int d, int bits) {
  const int levels = 1 << bits;
  const double sigma = 1 / std::sqrt(d), low = -3.5 * sigma, high = 3.5 * sigma;
  const auto density = [&](double x) {
    return std::exp(-x * x / (2 * sigma * sigma)) / (sigma * std::sqrt(2 * std::acos(-1.0)));
  };
  std::vector<double> c;
  for (int i = 0; i < levels; ++i) c.push_back(low + (high - low) * (i + 0.5) / levels);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> next;
    double moved = 0;
    for (int i = 0; i < levels; ++i) {
      const double a = i == 0 ? 3 * low : (c[at(i - 1)] + c[at(i)]) / 2;
      const double b = i + 1 == levels ? 3 * high : (c[at(i)] + c[at(i + 1)]) / 2;
      double moment = 0, mass = 0;
      for (int k = 0; k <= 200; ++k) {
        const double x = a + k * (b - a) / 200, weight = k == 0 || k == 200 ? 0.5 : 1;
        moment += weight * x * density(x);
        mass += weight * density(x);
      }
      next.push_back(moment / mass);
      moved = std::max(moved, std::abs(next.back() - c[at(i)]));
    }
    if (moved < 1e-10) break;
    c = next;
  }
  return c;
}

// The orthonormal Hadamard matrix of Sylvester.
std::vector<double> turned(const std::vector<double>& x) {
  std::vector<double> out;
  for (std::size_t row = 0; row < x.size(); ++row) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      std::size_t both = row & i;
      bool odd = false;
      for (; both != 0; both &= both - 1) odd = !odd;
      sum += odd ? -x[i] : x[i];
    }
    out.push_back(sum / std::sqrt(static_cast<double>(x.size())));
  }
  return out;
}

// To the nearest of FP8's E4M3.
double to_fp8(double x, long long& near) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent - 1, -6) - 3);
  return rounded(x / quantum, 1e-6, near) * quantum;
}

void quantise_key(std::vector<double>& k, int bits, Outcome& out) {
  if (bits == 8) {
    for (double& x : k) x = to_fp8(x, out.near_codes);
    out.codes += static_cast<long long>(k.size());
    return;
  }
  static std::map<std::array<int, 2>, std::vector<double>> cache;
  std::vector<double>& levels = cache[{static_cast<int>(k.size()), bits}];
  if (levels.empty()) levels = lloyd_max(static_cast<int>(k.size()), bits);
  const double length = norm(k);
  std::vector<double> y = k;
  for (double& x : y) x /= length + 1e-8;
  y = turned(y);
  double square = 0;
  for (double& x : y) {
    std::size_t code = 0;
    for (std::size_t i = 0; i + 1 < levels.size(); ++i) {
      const double middle = (levels[i] + levels[i + 1]) / 2;
      if (x >= middle) code = i + 1;
      if (std::abs(x - middle) < 1e-6) ++out.near_codes;
    }
    ++out.codes;
    x = levels[code];
    square += x * x;
  }
  const double scale = to_half(length, out.near_codes) / std::sqrt(square + 1e-16);
  for (double& x : y) x *= scale;
  k = turned(y);
}

// Equal steps in fp32, whose codes are of the step before it is rounded to fp16.
void quantise_value(std::vector<double>& v, int bits, Outcome& out) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const auto low = static_cast<float>(*std::min_element(v.begin(), v.end()));
  const auto high = static_cast<float>(*std::max_element(v.begin(), v.end()));
  const float step = std::max((high - low) / levels, 1e-8F);
  long long exact = 0;
  for (double& x : v) {
    const float code = std::floor((static_cast<float>(x) - low) / step + 0.5F);
    x = static_cast<double>(std::clamp(code, 0.0F, levels)) * to_half(step, exact) +
        to_half(low, exact);
    ++out.codes;
  }
}

}  // namespace

TurboBits turbo_bits(const Setup& u) {
  const std::string preset = u.text("turboquant.preset", "4bit_nc");
  if (preset == "k8v4") return {8, 4};
  if (preset == "k3v4_nc") return {3, 4};
  return preset == "3bit_nc" ? TurboBits{3, 3} : TurboBits{4, 4};
}

long long turbo_bytes(const Setup& u) {
  const auto [k_bits, v_bits] = turbo_bits(u);
  const int d = u.trace.head_dim, dv = u.trace.v_head_dim;
  const long long key = k_bits == 8 ? d : (d * k_bits + 7) / 8 + 2;
  const long long both = key + (dv * v_bits + 7) / 8 + 4;
  return both + both % 2;
}

void age_turboquant(const Setup& u, LayerState& s, int b, Outcome& out) {
  const auto [k_bits, v_bits] = turbo_bits(u);
  for (int h = 0; h < u.heads; ++h) {
    for (const int j : survivors(s, h, b, {})) {
      Entry& e = s.entries[at(h)][at(j)];
      if (e.k_packed) continue;
      e.k_packed = true;
      quantise_key(e.k, k_bits, out);
      quantise_value(e.v, v_bits, out);
      e.k_bytes = turbo_bytes(u);
      e.v_bytes = 0;
    }
  }
}

}  // namespace kvspan::twin::stores
