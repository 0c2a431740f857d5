// SPDX-License-Identifier: Apache-2.0
// Twins of streaming_llm, lambda, scissorhands, keyformer and h2o.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
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

// The loop of Scissorhands' released evaluation code: one pass over all T tokens, masked row by
// row.
struct ScissorhandsCode : Policy {
  using Policy::Policy;
  static constexpr int kStart = 100, kWindow = 100, kRecent = 10;
  void begin(int /*l*/) override { high.assign(at(w.Hq), {}); }
  // The value at floor(.9 T) of the row's T probabilities, of which those to come are 0.
  [[nodiscard]] double line(int l, int g, int row) const {
    std::vector<int> seen(at(row + 1));
    std::iota(seen.begin(), seen.end(), 0);
    std::vector<double> p = w.attention(l, g, row, seen);
    p.resize(at(w.N), 0.0);
    std::sort(p.begin(), p.end());
    return p[static_cast<std::size_t>(0.9 * w.N)];
  }
  // Kills what no head of the group has voted for in the rows before, the newest apart.
  bool mask(int l, int row) {
    bool any = false;
    for (int h = 0; h < w.Hk; ++h) {
      for (const int j : w.residents(l, h, row)) {
        if (j >= row - kRecent) continue;
        int votes = 0;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
          for (int r = std::max(0, row - kWindow); r < row; ++r) {
            votes += static_cast<int>(high[at(g)][at(r)].count(j));
          }
        }
        if (votes > 0) continue;
        w.kill(l, h, j, row);
        any = true;
      }
    }
    return any;
  }
  void select(int l, Pass pass) override {
    const int layer = w.t.layers[at(l)].model_layer;
    const bool compresses = layer >= 5 && layer <= 35;
    bool near = false, any = false;
    for (int row = pass.begin; row < pass.end && compresses; ++row) {
      if (row >= kStart) any = mask(l, row) || any;
      for (int g = 0; g < w.Hq; ++g) {
        const std::vector<int> keys = w.residents(l, g / w.G, row);
        w.out.active[w.reader(l, g, row)] = keys;
        const std::vector<double> p = w.attention(l, g, row, keys);
        const double bar = line(l, g, row);
        std::set<int> votes;
        for (std::size_t e = 0; e < keys.size(); ++e) {
          if (p[e] > bar) votes.insert(keys[e]);
          near = near || close(p[e], bar);
        }
        high[at(g)].push_back(votes);
      }
    }
    if (near || any) w.decide(l, near);
  }
  long long overhead(int /*row*/, long long entries) override { return 2 * entries; }
  std::vector<std::vector<std::set<int>>> high;  // [query heads][rows]
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
    const bool masks = w.word("variant", "paper") == "code";
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if ((masks ? b : static_cast<int>(held.size())) <= budget) continue;
      std::vector<double> scores;
      for (const int j : held) {
        double s = 0;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) s += sum[at(g)][at(j)];
        scores.push_back(s);
      }
      evict(l, h, b, held, b - recent, scores, true, budget - recent);
      // The authors' mask has one column more than there are tokens: of its newest `recent` columns
      // one is of the token to come, and the token before them is neither recent nor a candidate.
      if (masks) w.kill(l, h, b - recent, b);
    }
  }
  long long overhead(int /*row*/, long long entries) override { return 4 * entries; }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
};

// Heavy hitters and the newest.
struct H2o : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override { sum.assign(at(w.Hq), std::vector<double>(at(w.N), 0.0)); }
  // variant=ratio masks, and its mask has one column more than there are tokens: the newest
  // `recent` columns hold the token to come, so that the oldest of the newest is not read. Its
  // score is kept.
  void select(int l, Pass pass) override {
    const auto [heavy, recent] = shares();
    const int row = pass.begin;
    if (w.word("variant", "real_drop") != "ratio" || row < w.n || row <= heavy + recent) return;
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int>& keys = w.out.active[w.reader(l, g, row)];
      keys.erase(std::remove(keys.begin(), keys.end(), row - recent), keys.end());
    }
  }
  void watch(int l, Pass pass) override {
    if (by_value()) {
      for (int row = pass.begin; row < pass.end; ++row) watch_output(l, row);
      return;
    }
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const std::vector<double> p = w.observed(l, g, row);
        for (int j = 0; j <= row; ++j) sum[at(g)][at(j)] += p[at(j)];
      }
    }
  }
  // VLengthH2OKVCache._instantaneous_score of one row: norms times the group's weights, over their
  // sum. The first head of a group holds what is its group's.
  void watch_output(int l, int row) {
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<double> scores(at(row + 1), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        const std::vector<double> p = w.observed(l, g, row);
        for (int j = 0; j <= row; ++j) scores[at(j)] += p[at(j)];
      }
      double total = 0;
      for (int j = 0; j <= row; ++j) {
        double square = 0;
        for (int x = 0; x < w.t.v_head_dim; ++x) square += w.v(l, h, j, x) * w.v(l, h, j, x);
        scores[at(j)] *= std::sqrt(square);
        total += scores[at(j)];
      }
      for (int j = 0; j <= row && total > 0; ++j) sum[at(h * w.G)][at(j)] += scores[at(j)] / total;
    }
  }
  [[nodiscard]] bool by_value() const { return w.word("weight", "none") == "value"; }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    if (b < w.point) return;
    int heavy = 0, recent = 0;
    const std::string variant = w.word("variant", "real_drop");
    if (variant == "ratio") {
      std::tie(heavy, recent) = shares();
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
  // Heavy and recent ones of variant=ratio.
  [[nodiscard]] std::pair<int, int> shares() const {
    const auto share = [&](const std::string& name) {
      return static_cast<int>(std::floor(w.real(name, 10) / 100 * w.point + 1e-9));
    };
    const int heavy = share("heavy_share"), recent = share("recent_share");
    return {heavy, heavy + recent == 0 ? 1 : recent};
  }
  long long overhead(int /*row*/, long long entries) override {
    return (by_value() ? 8 : 4) * entries;
  }
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
