// SPDX-License-Identifier: Apache-2.0
// Twins of streaming_llm, lambda, scissorhands, keyformer and h2o.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// streaming_llm, lambda: the first tokens and the newest, after every pass.
struct Streaming : Policy {
  Streaming(World& world, bool lambda) : Policy(world) {
    if (w.has("budget")) {
      const int budget = w.amount("budget");
      sinks = std::min(lambda ? w.count("sinks", 4) : 4, budget);
      window = budget - sinks;
    } else {
      sinks = w.count("sinks", 4);
      window = w.count("window", 1020);
    }
  }
  void end(int l, Pass pass) override {
    for (int h = 0; h < w.Hk; ++h) {
      for (const int j : w.residents(l, h, pass.end - 1)) {
        if (j >= sinks && j < pass.end - window) w.kill(l, h, j, pass.end);
      }
      w.decide(l, false);
    }
  }
  bool renumbers() override { return w.word("positions", "original") == "cache"; }
  int sinks, window;
};

// Low votes of the last rows; drops a share of a full cache at once.
struct Scissorhands : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override {
    low.assign(at(w.Hq), {});
    near = false;
  }
  void watch(int l, Pass pass) override {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const std::vector<int>& keys = w.out.active[w.reader(l, g, row)];
        const std::vector<double> p = w.attention(l, g, row, keys);
        const auto entries = static_cast<double>(w.residents(l, g / w.G, row).size());
        std::set<int> votes;
        for (std::size_t e = 0; e < keys.size(); ++e) {
          if (p[e] * entries < 1 - 1e-12) votes.insert(keys[e]);
          if (std::abs(p[e] * entries - 1) < kNear && std::abs(p[e] * entries - 1) > 1e-12) {
            near = true;
          }
        }
        for (const int j : w.residents(l, g / w.G, row)) {
          if (std::find(keys.begin(), keys.end(), j) == keys.end()) votes.insert(j);
        }
        low[at(g)].push_back(votes);
      }
    }
  }
  void end(int l, Pass pass) override {
    const int budget = w.amount("budget");
    const int b = pass.end;
    if (b < w.point) return;
    const int dropped = std::min(
        budget - 1, static_cast<int>(std::floor(w.real("drop", 50) / 100 * budget + 1e-9)));
    const int recent = std::min(w.count("recent", 10), budget - dropped);
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if (static_cast<int>(held.size()) <= budget) continue;
      std::vector<double> scores;
      for (const int j : held) {
        int votes = 0;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
          for (int row = std::max(0, b - w.count("window", 400)); row < b; ++row) {
            votes += static_cast<int>(low[at(g)][at(row)].count(j));
          }
        }
        scores.push_back(-votes);
      }
      evict(l, h, b, held, b - recent, scores, false, budget - dropped - recent, near);
    }
  }
  long long overhead(int /*row*/, long long entries) override { return 2 * entries; }
  std::vector<std::vector<std::set<int>>> low;  // [query heads][rows] entries with a low vote
  bool near = false;
};

// The rule of Scissorhands' released evaluation code.
struct ScissorhandsCode : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override {
    high.assign(at(w.Hq), {});
    near = false;
  }
  void watch(int l, Pass pass) override {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const std::vector<int>& keys = w.out.active[w.reader(l, g, row)];
        const std::vector<double> p = w.attention(l, g, row, keys);
        std::vector<int> all(at(row + 1));
        std::iota(all.begin(), all.end(), 0);
        std::vector<double> sorted = w.attention(l, g, row, all);
        sorted.resize(at(w.N), 0.0);  // rows to come
        std::sort(sorted.begin(), sorted.end());
        const double bar = sorted[at(static_cast<int>(0.9 * w.N))];
        std::set<int> votes;
        for (std::size_t e = 0; e < keys.size(); ++e) {
          if (p[e] > bar) votes.insert(keys[e]);
          near = near || close(p[e], bar);
        }
        high[at(g)].push_back(votes);
      }
    }
  }
  void end(int l, Pass pass) override {
    const int layer = w.t.layers[at(l)].model_layer;
    const int b = pass.end;
    if (layer < 5 || layer > 35 || b < 100) return;
    for (int h = 0; h < w.Hk; ++h) {
      bool any = false;
      for (const int j : w.residents(l, h, b - 1)) {
        bool stays = j >= b - 10;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
          for (int row = b - 100; row < b; ++row) stays = stays || high[at(g)][at(row)].count(j);
        }
        if (stays) continue;
        w.kill(l, h, j, b);
        any = true;
      }
      if (any) w.decide(l, near);
    }
  }
  long long overhead(int /*row*/, long long entries) override { return 2 * entries; }
  std::vector<std::vector<std::set<int>>> high;  // [query heads][rows]
  bool near = false;
};

// Accumulated noisy softmax that warms up.
struct Keyformer : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override { sum.assign(at(w.Hq), std::vector<double>(at(w.N), 0.0)); }
  void watch(int l, Pass pass) override {
    const auto seed = static_cast<std::uint64_t>(w.count("seed", 0));
    const int layer = w.t.layers[at(l)].model_layer;
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const int itr = std::max(0, row - w.point + 1);
        const double tau =
            w.real("tau_start", 1) +
            itr * (w.real("tau_end", 2) - w.real("tau_start", 1)) / std::max(1, w.N - w.point);
        const std::vector<int>& keys = w.out.active[w.reader(l, g, row)];
        const std::uint64_t cell = chain(seed, {layer, g, row});
        std::vector<double> z = w.logits(l, g, row, keys);
        for (std::size_t e = 0; e < keys.size(); ++e) {
          z[e] = (z[e] - std::log(-std::log(uniform(cell, {keys[e]})))) / tau;
        }
        z = w.softmax(l, -1, z);
        for (std::size_t e = 0; e < keys.size(); ++e) sum[at(g)][at(keys[e])] += z[e];
      }
    }
  }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    const int every = w.count("every", 1);
    if (b < w.point) return;
    if (b > w.point && (b - w.point) / every == (pass.begin - w.point) / every) return;
    const int budget = w.amount("budget");
    const int recent = static_cast<int>(std::floor(w.real("recent", 30) / 100 * budget + 1e-9));
    if (w.word("variant", "paper") == "code") return freeze(l, b, budget, recent);
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if (static_cast<int>(held.size()) <= budget) continue;
      std::vector<double> scores;
      for (const int j : held) {
        double s = 0;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) s += sum[at(g)][at(j)];
        scores.push_back(s);
      }
      evict(l, h, b, held, b - recent, scores, true, budget - recent);
    }
  }
  // Masks that are one column too long: keys are chosen once, among all but the newest `recent`.
  void freeze(int l, int b, int budget, int recent) {
    if (b <= budget) return;
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<int> older;
      std::vector<double> scores;
      for (const int j : w.residents(l, h, b - 1)) {
        if (j >= b - recent) continue;
        older.push_back(j);
        scores.push_back(0);
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) scores.back() += sum[at(g)][at(j)];
      }
      bool near = false;
      if (!frozen.count({l, h}))
        frozen[{l, h}] = w.best(older, scores, true, budget - recent, near);
      const std::vector<int>& keys = frozen[{l, h}];
      for (const int j : w.residents(l, h, b - 1)) {
        if (j <= b - recent && std::find(keys.begin(), keys.end(), j) == keys.end())
          w.kill(l, h, j, b);
      }
      w.decide(l, near);
    }
  }
  std::map<std::pair<int, int>, std::vector<int>> frozen;  // [layer, head] keys
  long long overhead(int /*row*/, long long entries) override { return 4 * entries; }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
};

// Heavy hitters and the newest.
struct H2o : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override { sum.assign(at(w.Hq), std::vector<double>(at(w.N), 0.0)); }
  void watch(int l, Pass pass) override {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const std::vector<double> p = w.observed(l, g, row);
        for (int j = 0; j <= row; ++j) sum[at(g)][at(j)] += p[at(j)];
      }
    }
  }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    if (b < w.point) return;
    int heavy = 0, recent = 0;
    const std::string variant = w.word("variant", "real_drop");
    if (variant == "ratio") {
      heavy = share("heavy_share");
      recent = share("recent_share");
      if (heavy + recent == 0) recent = 1;
    } else if (variant == "flexgen") {
      const int half = w.amount("budget") / 2;
      heavy = b == w.point ? half : half - 1;
      recent = b == w.point ? half - 1 : half;
    } else {
      heavy = w.amount("budget") / 2;
      recent = w.amount("budget") - heavy;
    }
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if (static_cast<int>(held.size()) <= heavy + recent) continue;
      std::vector<double> scores;
      for (const int j : held) {
        double s = 0;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) s += sum[at(g)][at(j)];
        scores.push_back(w.word("normalise", "false") == "true" ? s / (b - j) : s);
      }
      evict(l, h, b, held, b - recent, scores, true, heavy);
    }
  }
  // variant=ratio: a generated token does not read the one that leaves the window with it.
  void select(int l, Pass pass) override {
    if (w.word("variant", "real_drop") != "ratio" || pass.begin < w.n) return;
    const int heavy = share("heavy_share");
    const int recent = heavy + share("recent_share") == 0 ? 1 : share("recent_share");
    if (pass.begin <= heavy + recent) return;
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int>& keys = w.out.active[w.reader(l, g, pass.begin)];
      keys.erase(std::remove(keys.begin(), keys.end(), pass.begin - recent), keys.end());
    }
  }
  [[nodiscard]] int share(const std::string& name) const {
    return static_cast<int>(std::floor(w.real(name, 10) / 100 * w.point + 1e-9));
  }
  long long overhead(int /*row*/, long long entries) override { return 4 * entries; }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
};

}  // namespace

std::unique_ptr<Policy> streaming(World& w, bool lambda) {
  return std::make_unique<Streaming>(w, lambda);
}

std::unique_ptr<Policy> scissorhands(World& w) {
  if (w.word("mode", "paper") == "paper") return std::make_unique<Scissorhands>(w);
  return std::make_unique<ScissorhandsCode>(w);
}

std::unique_ptr<Policy> keyformer(World& w) { return std::make_unique<Keyformer>(w); }

std::unique_ptr<Policy> h2o(World& w) { return std::make_unique<H2o>(w); }

}  // namespace kvspan::twin::decode
