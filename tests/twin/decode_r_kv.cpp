// SPDX-License-Identifier: Apache-2.0
// Twin of r_kv.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// Important and not said twice. The authors' cache holds what a cut keeps in the order of its
// score, then the window; the next cut pools over places in the cache, and looks there for the last
// duplicate.
struct Rkv : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override {
    cache.assign(at(w.Hk), {});
    near_order.assign(at(w.Hk), 0);
  }
  // Every forward call leaves a flag, whether its total length is a multiple; the next one uses it.
  [[nodiscard]] bool acts(Pass pass) const {
    if (pass.end <= w.point) return pass.end == w.point;
    return pass.begin % w.count("buffer", 128) == 0;
  }
  // Mean attention of the window's rows to the older entries, the largest logit of the group's.
  [[nodiscard]] std::vector<double> importance(int l, int h, int b,
                                               const std::vector<int>& older) const {
    const int window = w.count("window", 8);
    std::vector<double> out(older.size(), 0.0);
    for (int row = b - window; row < b; ++row) {
      std::vector<double> z(older.size(), -kInfinity);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        const std::vector<double> own = w.logits(l, g, row, older);
        for (std::size_t e = 0; e < z.size(); ++e) z[e] = std::max(z[e], own[e]);
      }
      z = w.softmax(l, -1, z);
      for (std::size_t e = 0; e < z.size(); ++e) out[e] += z[e] / window;
    }
    return pool(out, w.count("kernel", 7), true);
  }
  // Softmax of the mean cosine to all places of the cache, without each one's last duplicate.
  [[nodiscard]] std::vector<double> redundancy(int l, int h, const std::vector<int>& places,
                                               bool& near) const {
    const int size = static_cast<int>(places.size());
    const double bar = w.real("similarity", 0.5);
    std::vector<double> mean(places.size(), 0.0);
    for (int i = 0; i < size; ++i) {
      const std::vector<double> a = w.k(l, h, places[at(i)]);
      std::vector<double> c(places.size(), 0.0);
      int last = 0;
      for (int j = 0; j < size; ++j) {
        const std::vector<double> x = w.k(l, h, places[at(j)]);
        double dot = 0, aa = 0, xx = 0;
        for (int y = 0; y < w.d; ++y) {
          dot += a[at(y)] * x[at(y)];
          aa += a[at(y)] * a[at(y)];
          xx += x[at(y)] * x[at(y)];
        }
        if (i != j && aa > 0 && xx > 0) c[at(j)] = dot / std::sqrt(aa * xx);
        const double gap = c[at(j)] - bar;
        if (gap > 1e-12) last = j;
        near = near || (std::abs(gap) > 1e-12 && std::abs(gap) < kNear);
      }
      c[at(last)] = 0;
      for (int j = 0; j < size; ++j) mean[at(j)] += c[at(j)] / size;
    }
    return w.softmax(l, -1, mean);
  }
  void end(int l, Pass pass) override {
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<int>& places = cache[at(h)];
      for (int j = pass.begin; j < pass.end; ++j) places.push_back(j);
      if (acts(pass)) compress(l, h, pass.end, places);
    }
  }
  void compress(int l, int h, int b, std::vector<int>& places) {
    const int budget = w.amount("budget"), window = w.count("window", 8);
    const int size = static_cast<int>(places.size());
    const bool by_score = w.word("order", "cache") == "cache";
    if (!by_score) std::sort(places.begin(), places.end());
    if (size < budget) return;
    bool near = near_order[at(h)] != 0;
    std::vector<int> kept;
    if (budget > window) {
      const std::vector<int> older(places.begin(), places.end() - window);
      const std::vector<double> a = importance(l, h, b, older), r = redundancy(l, h, places, near);
      const double lambda = w.real("lambda", 0.1);
      std::vector<double> scores, rounded;
      for (std::size_t e = 0; e < older.size(); ++e) {
        scores.push_back(lambda * a[e] - (1 - lambda) * r[e]);
        rounded.push_back(fp32(scores[e]));
      }
      kept = ranking(older, rounded);
      kept.resize(at(budget - window));
      bool cut = false;
      std::ignore = w.best(older, scores, true, budget - window, cut);
      near = near || cut;
      std::sort(scores.begin(), scores.end(), std::greater<>());
      for (std::size_t e = 0; by_score && e + 1 < kept.size(); ++e) {
        if (close(scores[e], scores[e + 1])) near_order[at(h)] = 1;
      }
    }
    kept.insert(kept.end(), places.end() - std::min(window, budget), places.end());
    const std::set<int> stay(kept.begin(), kept.end());
    for (const int j : places) {
      if (!stay.count(j)) w.kill(l, h, j, b);
    }
    if (size > budget) w.decide(l, near);
    places = kept;
  }
  long long overhead(int row, long long /*entries*/) override {
    const long long ring = static_cast<long long>(w.L) * w.count("window", 8) * w.Hq * w.d * 2;
    // The similarities of one layer at a time; the prompt's can be formed in blocks.
    const auto held = static_cast<long long>(w.residents(0, 0, row).size());
    const long long side = std::min<long long>(held, w.amount("budget") + w.count("buffer", 128));
    bool acting = row + 1 < w.N && held >= w.amount("budget");
    for (const Pass& pass : w.passes) {
      if (row >= pass.begin && row < pass.end) acting = acting && row + 1 == pass.end && acts(pass);
    }
    return ring + (acting ? w.Hk * side * side * 4 : 0);
  }
  std::vector<std::vector<int>> cache;  // [kv heads] entries in their places
  std::vector<char> near_order;         // [kv heads] two places hang on a near tie
};

}  // namespace

std::unique_ptr<Policy> r_kv(World& w) { return std::make_unique<Rkv>(w); }

}  // namespace kvspan::twin::decode
