// SPDX-License-Identifier: Apache-2.0
// Twin of r_kv.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// Important and not said twice.
struct Rkv : Policy {
  using Policy::Policy;
  // Also after a pass of several rows in which the length was due.
  [[nodiscard]] bool acts(Pass pass) const {
    const int buffer = w.count("buffer", 128);
    if (pass.end <= w.point) return pass.end == w.point;
    return pass.end / buffer > pass.begin / buffer;
  }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    if (!acts(pass)) return;
    const int budget = w.amount("budget");
    const int window = w.count("window", 8);
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      const int size = static_cast<int>(held.size());
      if (size <= budget) continue;
      if (budget <= window) {
        evict(l, h, b, held, b - budget, std::vector<double>(held.size(), 0.0), false, 0);
        continue;
      }
      std::vector<int> older;
      for (const int j : held) {
        if (j < b - window) older.push_back(j);
      }
      // importance
      std::vector<double> importance(older.size(), 0.0);
      for (int row = b - window; row < b; ++row) {
        std::vector<double> z(older.size(), -kInfinity);
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
          const std::vector<double> own = w.logits(l, g, row, older);
          for (std::size_t e = 0; e < z.size(); ++e) z[e] = std::max(z[e], own[e]);
        }
        z = w.softmax(l, -1, z);
        for (std::size_t e = 0; e < z.size(); ++e) importance[e] += z[e] / window;
      }
      importance = pool(importance, w.count("kernel", 7), true);
      // redundancy
      bool near = false;
      std::vector<std::vector<double>> c(at(size), std::vector<double>(at(size), 0.0));
      for (int i = 0; i < size; ++i) {
        for (int j = 0; j < size; ++j) {
          if (i == j) continue;
          const std::vector<double> a = w.k(l, h, held[at(i)]), x = w.k(l, h, held[at(j)]);
          double dot = 0, aa = 0, xx = 0;
          for (int y = 0; y < w.d; ++y) {
            dot += a[at(y)] * x[at(y)];
            aa += a[at(y)] * a[at(y)];
            xx += x[at(y)] * x[at(y)];
          }
          if (aa > 0 && xx > 0) c[at(i)][at(j)] = dot / std::sqrt(aa * xx);
        }
      }
      const double bar = w.real("similarity", 0.5);
      for (int i = 0; i < size; ++i) {
        int last = 0;
        for (int j = 0; j < size; ++j) {
          const double gap = c[at(i)][at(j)] - bar;
          if (gap > 1e-12) last = j;
          near = near || std::abs(gap) < kNear;
        }
        c[at(i)][at(last)] = 0;
      }
      std::vector<double> mean(at(size), 0.0);
      for (int j = 0; j < size; ++j) {
        for (int i = 0; i < size; ++i) mean[at(j)] += c[at(i)][at(j)] / size;
      }
      const std::vector<double> r = w.softmax(l, -1, mean);
      const double lambda = w.real("lambda", 0.1);
      std::vector<double> scores(at(size), 0.0);
      for (std::size_t e = 0; e < older.size(); ++e) {
        scores[e] = lambda * importance[e] - (1 - lambda) * r[e];
      }
      evict(l, h, b, held, b - window, scores, true, budget - window, near);
    }
  }
  long long overhead(int row, long long /*entries*/) override {
    const long long ring = static_cast<long long>(w.L) * w.count("window", 8) * w.Hq * w.d * 2;
    // The similarities of one layer at a time; the prompt's can be formed in blocks.
    const auto held = static_cast<long long>(w.residents(0, 0, row).size());
    const long long side = std::min<long long>(held, w.amount("budget") + w.count("buffer", 128));
    bool acting = row + 1 < w.N && held > w.amount("budget");
    for (const Pass& pass : w.passes) {
      if (row >= pass.begin && row < pass.end) acting = acting && row + 1 == pass.end && acts(pass);
    }
    return ring + (acting ? w.Hk * side * side * 4 : 0);
  }
};

}  // namespace

std::unique_ptr<Policy> r_kv(World& w) { return std::make_unique<Rkv>(w); }

}  // namespace kvspan::twin::decode
