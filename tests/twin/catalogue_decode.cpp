// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_decode.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>

#include "tests/twin/parts.h"

namespace kvspan::twin::decode {
namespace {

constexpr double kNear = 1e-5;

double fp32(double x) { return static_cast<double>(static_cast<float>(x)); }

// Unequal, but by so little that another order of the same sums may turn it round.
bool close(double a, double b) {
  if (std::isinf(a) || std::isinf(b)) return false;
  return a != b && std::abs(a - b) <= kNear * std::max({std::abs(a), std::abs(b), 1e-7});
}

// ---- what every policy sees -----------------------------------------------------------------

struct World {
  const Trace& t;
  const Parameters& given;
  const Text& text;
  int L, Hq, Hk, G, d, N;
  int n;      // prompt
  int point;  // n'
  std::vector<Pass> passes;
  Outcome out;

  // ---- parameters
  [[nodiscard]] bool has(const std::string& name) const { return given.count(name) > 0; }
  [[nodiscard]] std::string word(const std::string& name, const std::string& fallback) const {
    return has(name) ? given.at(name) : fallback;
  }
  [[nodiscard]] double real(const std::string& name, double fallback) const {
    return has(name) ? std::stod(given.at(name)) : fallback;
  }
  [[nodiscard]] int count(const std::string& name, int fallback) const {
    return has(name) ? std::stoi(given.at(name)) : fallback;
  }
  // Tokens; bytes over all layers and KV heads; or a share of the prompt: the exact decimal product,
  // rounded down, at least 1.
  [[nodiscard]] int amount(const std::string& name) const {
    if (!has(name)) throw std::invalid_argument("missing: " + name);
    const std::string& s = given.at(name);
    if (s.back() == 'B') return std::stoi(s) / (L * Hk * (d + t.v_head_dim) * 2);
    if (s.back() != '%') return std::stoi(s);
    long long digits = 0, scale = 100;
    bool fraction = false;
    for (const char c : s.substr(0, s.size() - 1)) {
      if (c == '.') {
        fraction = true;
        continue;
      }
      digits = 10 * digits + (c - '0');
      if (fraction) scale *= 10;
    }
    return static_cast<int>(std::max(1LL, digits * point / scale));
  }

  // ---- the cache
  [[nodiscard]] std::size_t cell(int l, int h, int j) const {
    return (at(l) * at(Hk) + at(h)) * at(N) + at(j);
  }
  [[nodiscard]] std::size_t reader(int l, int g, int row) const {
    return (at(l) * at(Hq) + at(g)) * at(N) + at(row);
  }
  [[nodiscard]] std::vector<int> residents(int l, int h, int row) const {
    std::vector<int> r;
    for (int j = 0; j <= row; ++j) {
      if (out.death[cell(l, h, j)] > row) r.push_back(j);
    }
    return r;
  }
  void kill(int l, int h, int j, int row) { out.death[cell(l, h, j)] = row; }
  void decide(int l, bool near) {
    ++out.decisions;
    if (!near) return;
    ++out.near_ties;
    out.near[at(l)] = 1;
  }

  // ---- decisions
  // False if the same difference of two logits can have two values in fp32, so that sums over rows
  // that tie on paper may not tie in the engine.
  [[nodiscard]] bool exact() const { return d == 4; }
  [[nodiscard]] std::vector<int> best(const std::vector<int>& from, const std::vector<double>& raw,
                                      bool round, int count, bool& near) const;

  // ---- attention
  [[nodiscard]] std::vector<double> q(int l, int g, int row) const {
    const double* x = t.layers[at(l)].q.data() + (at(row) * at(Hq) + at(g)) * at(d);
    return {x, x + d};
  }
  [[nodiscard]] std::vector<double> k(int l, int h, int j) const {
    const double* x = t.layers[at(l)].k.data() + (at(j) * at(Hk) + at(h)) * at(d);
    return {x, x + d};
  }
  [[nodiscard]] double v(int l, int h, int j, int x) const {
    return t.layers[at(l)].v[(at(j) * at(Hk) + at(h)) * at(t.v_head_dim) + at(x)];
  }
  [[nodiscard]] double logit(const std::vector<double>& a, const std::vector<double>& b) const {
    double z = 0;
    for (int i = 0; i < d; ++i) z += a[at(i)] * b[at(i)];
    z *= t.score_scale;
    return t.softcap > 0 ? t.softcap * std::tanh(z / t.softcap) : z;
  }
  // False for the future, and outside the model's own window.
  [[nodiscard]] bool reads(int l, int row, int j) const {
    const int window = t.layers[at(l)].sliding_window;
    return j <= row && (window == 0 || j > row - window);
  }
  [[nodiscard]] std::vector<double> logits(int l, int g, int row,
                                           const std::vector<int>& keys) const {
    std::vector<double> z;
    for (const int j : keys) {
      z.push_back(reads(l, row, j) ? logit(q(l, g, row), k(l, g / G, j)) : -kInfinity);
    }
    return z;
  }
  // Softmax of logits; the head's sink logit, if there is one, takes its share.
  [[nodiscard]] std::vector<double> softmax(int l, int g, std::vector<double> z) const {
    const auto& sinks = t.layers[at(l)].sink_logits;
    double top = sinks.empty() || g < 0 ? -kInfinity : sinks[at(g)];
    for (const double x : z) top = std::max(top, x);
    if (top == -kInfinity) return std::vector<double>(z.size(), 0.0);
    double sum = sinks.empty() || g < 0 ? 0 : std::exp(sinks[at(g)] - top);
    for (double& x : z) sum += (x = std::exp(x - top));
    for (double& x : z) x /= sum;
    return z;
  }
  [[nodiscard]] std::vector<double> attention(int l, int g, int row,
                                              const std::vector<int>& keys) const {
    return softmax(l, g, logits(l, g, row, keys));
  }
  // p' of a row over what it read; [tokens], 0 for what it did not read.
  [[nodiscard]] std::vector<double> observed(int l, int g, int row) const {
    const std::vector<int>& keys = out.active[reader(l, g, row)];
    const std::vector<double> p = attention(l, g, row, keys);
    std::vector<double> all(at(N), 0.0);
    for (std::size_t e = 0; e < keys.size(); ++e) all[at(keys[e])] = p[e];
    return all;
  }
};

// Entries of `from` by score, best first; ties to the lower token.
std::vector<int> ranking(const std::vector<int>& from, const std::vector<double>& scores) {
  std::vector<std::size_t> order(from.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  std::vector<int> out;
  for (const std::size_t e : order) out.push_back(from[e]);
  return out;
}

// The `count` best of `from`, ascending. `raw` are the scores before they were rounded.
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

// splitmix64, chained over the keys.
std::uint64_t chain(std::uint64_t seed, std::initializer_list<std::int64_t> keys) {
  std::uint64_t x = mix(seed);
  for (const std::int64_t key : keys) x = mix(x ^ static_cast<std::uint64_t>(key));
  return x;
}

double uniform(std::uint64_t seed, std::initializer_list<std::int64_t> keys) {
  return (static_cast<double>(chain(seed, keys) >> 12) + 0.5) / 4503599627370496.0;
}

// ---- a policy -------------------------------------------------------------------------------

struct Policy {
  explicit Policy(World& world) : w(world) {}
  virtual ~Policy() = default;
  virtual void begin(int /*l*/) {}
  virtual void select(int /*l*/, Pass /*pass*/) {}  // may shorten w.out.active of the pass's rows
  virtual void watch(int /*l*/, Pass /*pass*/) {}   // the rows have attended
  virtual void end(int /*l*/, Pass /*pass*/) {}     // evicts
  // Entries read in a row by one stored head, where that is not the union of what its heads attend to.
  virtual long long loads(int l, int h, int row) {
    std::set<int> read;
    for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
      for (const int j : w.out.active[w.reader(l, g, row)]) {
        if (w.reads(l, row, j)) read.insert(j);
      }
    }
    return static_cast<long long>(read.size());
  }
  virtual bool on_device(int /*l*/, int /*j*/, int /*row*/) { return true; }
  virtual bool renumbers() { return false; }
  virtual long long overhead(int /*row*/, long long /*entries*/) { return 0; }

  // Keeps entries from `protect_from` on and the `top` best of the older ones.
  void evict(int l, int h, int b, const std::vector<int>& held, int protect_from,
             const std::vector<double>& raw, bool round, int top, bool extra_near = false) {
    std::vector<int> older;
    std::vector<double> scores;
    for (std::size_t e = 0; e < held.size(); ++e) {
      if (held[e] >= protect_from) continue;
      older.push_back(held[e]);
      scores.push_back(raw[e]);
    }
    bool near = false;
    const std::vector<int> stay = w.best(older, scores, round, top, near);
    const std::set<int> kept(stay.begin(), stay.end());
    if (kept.size() == older.size()) return;
    for (const int j : older) {
      if (!kept.count(j)) w.kill(l, h, j, b);
    }
    w.decide(l, near || extra_near);
  }
  [[nodiscard]] bool skips(int l) const {
    return w.t.layers[at(l)].model_layer < w.count("skip", 2);
  }
  World& w;
};

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
        std::vector<double> sorted = p;
        std::sort(sorted.begin(), sorted.end());
        const double place = 0.9 * static_cast<double>(sorted.size() - 1);
        const auto low = static_cast<std::size_t>(std::floor(place));
        const std::size_t next = std::min(low + 1, sorted.size() - 1);
        const double bar = sorted[low] + (place - std::floor(place)) * (sorted[next] - sorted[low]);
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
    if (layer < 5 || layer > 35 || b < w.point || b <= 100) return;
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
  long long overhead(int /*row*/, long long entries) override { return 4 * entries; }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
};

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

// One selection after the prompt, then a sliding window.
struct SageKv : Policy {
  explicit SageKv(World& world) : Policy(world) {
    budget = w.amount("budget");
    const auto share = [&](double percent) {
      return static_cast<int>(std::floor(percent / 100 * budget + 1e-9));
    };
    sinks = share(w.real("sinks", 25));
    const double rest = 100 - w.real("sinks", 25) - w.real("recent", 25);
    each = w.has("k") ? w.count("k", 0)
                      : static_cast<int>(std::floor(rest / 100 * budget / w.G + 1e-9));
    recent = budget - sinks - w.G * each;
  }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    if (b < w.point) return;
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if (b == w.point && b > budget) {
        choose(l, h, b);
      } else if (b > w.point) {
        // The window slides: the oldest behind the frozen part leave.
        const int frozen = w.point > budget ? w.point - recent : sinks;
        const int slides = w.point > budget ? recent : budget - sinks;
        for (const int j : held) {
          if (j >= frozen && j < b - slides) w.kill(l, h, j, b);
        }
      }
    }
  }
  void choose(int l, int h, int b) {
    std::vector<int> middle;
    for (int j = sinks; j < b - recent; ++j) middle.push_back(j);
    std::vector<int> all;
    for (int j = 0; j < b; ++j) all.push_back(j);
    bool near = false;
    std::set<int> chosen;
    if (w.word("agg", "perhead") == "sum") {
      std::vector<double> z(middle.size(), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        const std::vector<double> own = w.logits(l, g, b - 1, middle);
        for (std::size_t e = 0; e < z.size(); ++e) z[e] += own[e];
      }
      for (const int j : w.best(middle, z, true, w.G * each, near)) chosen.insert(j);
    } else {
      std::vector<std::vector<int>> lists;
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        std::vector<double> p = w.attention(l, g, b - 1, all);
        std::vector<double> mid, rounded;
        for (const int j : middle) mid.push_back(p[at(j)]);
        for (const double x : mid) rounded.push_back(fp32(x));
        for (std::size_t x = 0; x < mid.size(); ++x) {
          for (std::size_t y = 0; y < mid.size(); ++y) near = near || close(mid[x], mid[y]);
        }
        lists.push_back(ranking(middle, rounded));
      }
      const bool fill = w.word("dup", "fill") == "fill";
      for (std::size_t rank = 0; rank < middle.size(); ++rank) {
        if (!fill && rank >= at(each)) break;
        for (const std::vector<int>& list : lists) {
          if (fill && static_cast<int>(chosen.size()) == w.G * each) break;
          chosen.insert(list[rank]);
        }
      }
    }
    for (const int j : middle) {
      if (!chosen.count(j)) w.kill(l, h, j, b);
    }
    w.decide(l, near);
  }
  int budget, sinks, each, recent;
};

// The cheapest of five sets that explains a head's attention in the prompt.
struct FastGen : Policy {
  using Policy::Policy;
  void begin(int /*l*/) override {
    sum.assign(at(w.Hq), std::vector<double>(at(w.N), 0.0));
    klass.assign(at(w.Hk), 5);
    near = false;
  }
  void watch(int l, Pass pass) override {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = pass.begin; row < pass.end; ++row) {
        const std::vector<double> p = w.observed(l, g, row);
        for (int j = 0; j <= row; ++j) sum[at(g)][at(j)] += p[at(j)];
      }
    }
  }
  [[nodiscard]] bool special(int j) const {
    if (!w.text.knows_special) return j == 0;
    return std::find(w.text.special.begin(), w.text.special.end(), j) != w.text.special.end();
  }
  [[nodiscard]] bool punctuation(int j) const {
    if (!has_punctuation()) return false;
    const std::string& piece = w.text.pieces[at(j)];
    bool visible = false;
    for (const char c : piece) {
      if (c == ' ') continue;
      visible = true;
      if (c != '\n' && !(static_cast<unsigned char>(c) < 128 && std::ispunct(c))) return false;
    }
    return visible;
  }
  [[nodiscard]] bool has_punctuation() const {
    return !w.text.pieces.empty() && w.word("punctuation", "true") == "true";
  }
  static int share(double percent, int length) {
    return static_cast<int>(std::ceil(percent / 100 * length - 1e-9));
  }
  // What class c of a head keeps of `held` at length t.
  std::set<int> keeps(int h, int c, int t, const std::vector<int>& held) {
    std::set<int> stay;
    std::vector<int> others;
    std::vector<double> scores;
    const int local = share(w.real("recent", 30), t);
    for (const int j : held) {
      if (c == 5 || special(j) || (c >= 2 && punctuation(j)) || (c >= 4 && j >= t - local)) {
        stay.insert(j);
        continue;
      }
      others.push_back(j);
      double s = 0;
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) s += sum[at(g)][at(j)];
      scores.push_back(s);
    }
    if (c >= 3 && c < 5) {
      for (const int j : w.best(others, scores, true, share(w.real("frequent", 30), t), near)) {
        stay.insert(j);
      }
    }
    return stay;
  }
  void end(int l, Pass pass) override {
    const int b = pass.end;
    if (b < w.point) return;
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, b - 1);
      if (b == w.point) {
        int needed = 1;
        for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
          int c = 1;
          for (; c < 5; ++c) {
            if (c == 2 && !has_punctuation()) continue;
            const std::set<int> columns = keeps(h, c, b, held);
            const int band = c == 4 ? share(w.real("recent", 30), b) : 0;
            // Columns that are in the set only because they are local count where they are local.
            std::set<int> fixed;
            for (const int j : columns) {
              const bool by_band = c == 4 && j >= b - band && !special(j) && !punctuation(j);
              if (!by_band) fixed.insert(j);
            }
            double mass = 0;
            for (int row = 0; row < b; ++row) {
              const std::vector<double> p = w.observed(l, g, row);
              for (int j = 0; j <= row; ++j) {
                if (fixed.count(j) || j > row - band) mass += p[at(j)] / b;
              }
            }
            near = near || std::abs(mass - w.real("recovery", 0.95)) < kNear;
            if (mass >= w.real("recovery", 0.95)) break;
          }
          needed = std::max(needed, c);
        }
        klass[at(h)] = needed;
      }
      if (klass[at(h)] == 5) continue;
      const std::set<int> stay = keeps(h, klass[at(h)], b, held);
      bool any = false;
      for (const int j : held) {
        if (stay.count(j)) continue;
        w.kill(l, h, j, b);
        any = true;
      }
      if (any) w.decide(l, near);
    }
  }
  // A score of one element per entry, and a byte per head for its class.
  long long overhead(int /*row*/, long long entries) override {
    return 2 * entries + static_cast<long long>(w.L) * w.Hk;
  }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
  std::vector<int> klass;                // [kv_heads] 1 special ... 5 everything
  bool near = false;
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
  [[nodiscard]] int share(const std::string& name) const {
    return static_cast<int>(std::floor(w.real(name, 10) / 100 * w.point + 1e-9));
  }
  long long overhead(int /*row*/, long long entries) override { return 4 * entries; }
  std::vector<std::vector<double>> sum;  // [query heads][tokens]
};

// Pages with the best key bounds; what is read is chosen, nothing is evicted.
struct Quest : Policy {
  Quest(World& world, std::string prefix_, const char* per_default)
      : Policy(world), prefix(std::move(prefix_)), per(w.word(prefix + "per", per_default)) {
    page = w.count(prefix + "page", 16);
    pages_read = std::max({w.count(prefix + "least", 3), w.amount(prefix + "budget") / page, 1});
  }
  [[nodiscard]] bool dense(int l, int row) const {
    return row < w.n || w.t.layers[at(l)].model_layer < w.count(prefix + "skip", 2);
  }
  // Pages that a query head reads in a row; empty: everything.
  std::vector<int> choose(int l, int g, int row) {
    std::vector<int> living;
    const std::vector<int> held = w.residents(l, g / w.G, row);
    for (const int j : held) {
      if (living.empty() || living.back() != j / page) living.push_back(j / page);
    }
    if (static_cast<int>(living.size()) <= pages_read) return {};
    std::vector<double> scores;
    for (const int p : living) {
      double top = -kInfinity;
      for (int x = 0; x < w.Hq; ++x) {
        if (per == "kv" ? x / w.G != g / w.G : x != g) continue;
        const std::vector<double> q = w.q(l, x, row);
        double bound = 0;
        for (int i = 0; i < w.d; ++i) {
          double low = kInfinity, high = -kInfinity;
          for (int j = p * page; j < std::min((p + 1) * page, row + 1); ++j) {
            const double key = w.k(l, g / w.G, j)[at(i)];
            low = std::min(low, key);
            high = std::max(high, key);
          }
          bound += std::max(q[at(i)] * low, q[at(i)] * high);
        }
        top = std::max(top, bound);
      }
      scores.push_back(top);
    }
    bool near = false;
    std::vector<int> chosen;
    if (w.word(prefix + "last_page", "true") == "true") {
      const int newest = living.back();
      living.pop_back();
      scores.pop_back();
      chosen = w.best(living, scores, false, pages_read - 1, near);
      chosen.push_back(newest);
    } else {
      chosen = w.best(living, scores, false, pages_read, near);
    }
    w.decide(l, near);
    return chosen;
  }
  void select(int l, Pass pass) override {
    for (int row = pass.begin; row < pass.end; ++row) {
      if (dense(l, row)) continue;
      for (int g = 0; g < w.Hq; ++g) {
        const std::vector<int> pages = choose(l, g, row);
        if (pages.empty()) continue;
        std::vector<int> keys;
        for (const int j : w.residents(l, g / w.G, row)) {
          if (std::find(pages.begin(), pages.end(), j / page) != pages.end()) keys.push_back(j);
        }
        w.out.active[w.reader(l, g, row)] = keys;
      }
    }
  }
  [[nodiscard]] long long page_count(int row) const { return (row + page) / page; }
  long long overhead(int row, long long /*entries*/) override {
    return static_cast<long long>(w.L) * w.Hk * page_count(row) * 2 * w.d * 2;
  }
  std::string prefix, per;
  int page = 16, pages_read = 0;
};

// A row also attends to the pages of the next rows.
struct Retro : Quest {
  explicit Retro(World& world) : Quest(world, "", "kv") {}
  void select(int l, Pass pass) override {
    for (int row = pass.begin; row < pass.end; ++row) {
      if (dense(l, row)) continue;
      for (int g = 0; g < w.Hq; ++g) {
        std::set<int> keys, own;
        for (int u = row; u < std::min(w.N, row + w.count("window", 2)); ++u) {
          const std::vector<int> pages = choose(l, g, u);
          for (int j = 0; j <= row; ++j) {
            const bool in =
                pages.empty() || std::find(pages.begin(), pages.end(), j / page) != pages.end();
            if (in) keys.insert(j);
            if (in && u == row) own.insert(j);
          }
        }
        w.out.active[w.reader(l, g, row)] = {keys.begin(), keys.end()};
        first[w.reader(l, g, row)] = own;
      }
    }
  }
  long long loads(int l, int h, int row) override {
    if (dense(l, row)) return Policy::loads(l, h, row);
    std::set<int> read;
    for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
      for (const int j : first[w.reader(l, g, row)]) {
        if (w.reads(l, row, j)) read.insert(j);
      }
    }
    return static_cast<long long>(read.size());
  }
  long long overhead(int row, long long entries) override {
    const long long past = w.count("window", 2) - 1;
    return Quest::overhead(row, entries) +
           past * w.L * (static_cast<long long>(w.Hq) * w.t.v_head_dim * 2 + 4LL * w.Hq) +
           w.L * w.Hk * page_count(row);
  }
  std::map<std::size_t, std::set<int>> first;  // [reader] S_u
};

// A small copy that full rows make anew.
struct RefreshKv : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n) return;
    const int size = w.amount("budget");
    if (row == w.n) {
      copy.assign(at(w.Hk), {});
      refresh(l, w.n - 1);
    }
    const int stride = w.count("stride", 5);
    bool full = (row - w.n + 1) % stride == 0;
    if (full && w.word("schedule", "compare") == "compare") {
      const std::vector<double> now = mean_query(l, row);
      double dot = 0, a = 0, b = 0;
      for (int i = 0; i < w.d; ++i) {
        dot += now[at(i)] * last[at(i)];
        a += now[at(i)] * now[at(i)];
        b += last[at(i)] * last[at(i)];
      }
      const double cosine = dot / std::sqrt(a * b);
      const double bar = w.real("threshold", 0.95);
      full = cosine <= bar;
      w.decide(l, std::abs(cosine - bar) < kNear);
    }
    if (full) {
      refresh(l, row);
      return;
    }
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<int>& held = copy[at(h)];  // the first leaves first
      held.push_back(row);
      std::vector<int> keys = held;
      std::sort(keys.begin(), keys.end());
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) w.out.active[w.reader(l, g, row)] = keys;
      while (static_cast<int>(held.size()) > size) held.erase(held.begin());
    }
  }
  void refresh(int l, int row) {
    std::vector<int> all(at(row + 1));
    std::iota(all.begin(), all.end(), 0);
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<double> top(all.size(), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        const std::vector<double> p = w.attention(l, g, row, all);
        for (std::size_t e = 0; e < p.size(); ++e) top[e] = std::max(top[e], p[e]);
      }
      top = pool(top, w.count("kernel", 7), true);
      bool near = false;
      const std::vector<int> chosen = w.best(all, top, true, w.amount("budget"), near);
      std::vector<double> scores;
      for (const int j : chosen) {
        scores.push_back(fp32(top[at(j)]));
        for (const int i : chosen) near = near || close(top[at(i)], top[at(j)]);
      }
      copy[at(h)] = ranking(chosen, scores);
      std::reverse(copy[at(h)].begin(), copy[at(h)].end());
      w.decide(l, near);
    }
    last = mean_query(l, row);
  }
  [[nodiscard]] std::vector<double> mean_query(int l, int row) const {
    std::vector<double> mean(at(w.d), 0.0);
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<double> q = w.q(l, g, row);
      for (int i = 0; i < w.d; ++i) mean[at(i)] += q[at(i)];
    }
    return mean;  // times the heads: its direction counts
  }
  long long overhead(int row, long long /*entries*/) override {
    const bool compares = w.word("schedule", "compare") == "compare";
    const long long query = compares ? static_cast<long long>(w.L) * w.d * 2 : 0;
    if (row < w.n) return query;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    return query +
           static_cast<long long>(w.L) * w.Hk * std::min(w.amount("budget"), row + 1) * entry;
  }
  std::vector<std::vector<int>> copy;  // [kv_heads] what leaves first, first
  std::vector<double> last;            // mean query of the last full row
};

// As many entries as score within alpha of the best, averaged over heads; the cache is on the host.
struct InfiniGen : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n || w.t.layers[at(l)].model_layer == 0) return;
    std::vector<int> earlier(at(row));
    std::iota(earlier.begin(), earlier.end(), 0);
    bool near = false;
    long long within = 0;
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<double> z = w.logits(l, g, row, earlier);
      const double bar = *std::max_element(z.begin(), z.end()) - w.real("alpha", 4);
      for (const double x : z) {
        within += x > bar;
        near = near || (std::abs(x - bar) < kNear && x != bar);
      }
    }
    const int fetched = std::min(static_cast<int>(within / w.Hq), w.amount("cap"));
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int> keys = w.best(earlier, w.logits(l, g, row, earlier), true, fetched, near);
      keys.push_back(row);
      w.out.active[w.reader(l, g, row)] = keys;
    }
    w.decide(l, near);
  }
  bool on_device(int /*l*/, int j, int row) override {
    return row < w.point || j >= (row < w.n ? w.point : row);
  }
  // Copies in flight for two layers; the model's first layer takes everything.
  long long overhead(int row, long long /*entries*/) override {
    if (row < w.point) return 0;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    const long long most = w.Hq * w.amount("cap") * entry;
    const bool first = w.t.layers[0].model_layer == 0;
    return most + std::max(most, first ? (row + 1) * w.Hk * entry : 0);
  }
};

// Vertical lines and diagonals in the prompt.
struct MInference : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int b = pass.end;
    if (b > w.point) return;
    const int verticals = w.count("verticals", 1000), slashes = w.count("slashes", 6096);
    const int first = w.count("first", 30), forced = w.count("forced_slash", 100);
    std::vector<int> all(at(b));
    std::iota(all.begin(), all.end(), 0);
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int> columns, distances;
      bool near = false;
      if (w.word("pattern", "vertical_slash") == "a_shape") {
        for (int j = 0; j < std::min(b, verticals); ++j) columns.push_back(j);
        for (int j = 0; j < std::min(b, std::max(slashes, 1)); ++j) distances.push_back(j);
      } else {
        std::vector<double> column(at(b), 0.0), diagonal(at(b), 0.0);
        for (int row = std::max(pass.begin, b - w.count("last", 64)); row < b; ++row) {
          std::vector<double> z;
          for (const int j : all) {
            double dot = 0;
            const std::vector<double> q = w.q(l, g, row), k = w.k(l, g / w.G, j);
            for (int i = 0; i < w.d; ++i) dot += q[at(i)] * k[at(i)];
            z.push_back(j <= row ? dot * w.t.score_scale : -kInfinity);
          }
          z = w.softmax(l, -1, z);
          for (int j = 0; j <= row; ++j) {
            column[at(j)] += z[at(j)];
            diagonal[at(row - j)] += z[at(j)];
          }
        }
        for (int j = 0; j < b; ++j) {
          if (j < first) column[at(j)] = kInfinity;
          if (j < forced) diagonal[at(j)] = kInfinity;
        }
        columns = w.best(all, column, true, std::max(verticals, first), near);
        distances = w.best(all, diagonal, true, std::max(slashes, std::min(50, forced)), near);
      }
      w.decide(l, near);
      for (int row = pass.begin; row < b; ++row) {
        std::vector<int> keys;
        for (int j = 0; j <= row; ++j) {
          if (std::find(columns.begin(), columns.end(), j) != columns.end() ||
              std::find(distances.begin(), distances.end(), row - j) != distances.end()) {
            keys.push_back(j);
          }
        }
        w.out.active[w.reader(l, g, row)] = keys;
      }
    }
  }
};

// One evicts, the other chooses what is read.
struct Both : Policy {
  Both(World& world, std::unique_ptr<Policy> one, std::unique_ptr<Policy> other)
      : Policy(world), evicts(std::move(one)), selects(std::move(other)) {}
  void begin(int l) override { evicts->begin(l); }
  void select(int l, Pass pass) override { selects->select(l, pass); }
  void watch(int l, Pass pass) override { evicts->watch(l, pass); }
  void end(int l, Pass pass) override { evicts->end(l, pass); }
  long long overhead(int row, long long entries) override {
    return evicts->overhead(row, entries) + selects->overhead(row, entries);
  }
  std::unique_ptr<Policy> evicts, selects;
};

// Clusters of keys whose centroids promise the most.
struct ClusterKv : Policy {
  using Policy::Policy;
  struct Cluster {
    std::vector<double> sum;
    double count;
    std::vector<int> members;
  };
  void begin(int /*l*/) override {
    clusters.assign(at(w.Hk), {});
    clustered = 0;
    near = false;
  }
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n || skips(l)) return;
    const int sinks = w.count("sinks", 16), every = w.count("every", 320);
    if (row == w.n) {
      const int count = w.has("clusters") ? w.count("clusters", 1) : std::max(1, w.point / 80);
      for (int h = 0; h < w.Hk; ++h) add(l, h, sinks, w.point, count);
      clustered = w.point;
    }
    for (; row - clustered >= every; clustered += every) {
      for (int h = 0; h < w.Hk; ++h) {
        add(l, h, std::max(sinks, clustered), clustered + every, w.count("added", 4));
      }
    }
    const int budget = w.amount("budget");
    if (row + 1 <= budget) return;
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<Cluster>& own = clusters[at(g / w.G)];
      std::vector<int> names;
      std::vector<double> scores;
      const std::vector<double> q = w.q(l, g, row);
      for (std::size_t c = 0; c < own.size(); ++c) {
        double dot = 0;
        for (int i = 0; i < w.d; ++i) dot += q[at(i)] * own[c].sum[at(i)];
        names.push_back(static_cast<int>(c));
        scores.push_back(fp32(dot / own[c].count));
      }
      for (std::size_t a = 0; a < scores.size(); ++a) {
        for (std::size_t b = 0; b < scores.size(); ++b) near = near || close(scores[a], scores[b]);
      }
      std::set<int> keys;
      int room = budget - sinks;
      for (const int c : ranking(names, scores)) {
        for (const int j : own[at(c)].members) {
          if (room > 0) {
            keys.insert(j);
            --room;
          }
        }
      }
      chosen[w.reader(l, g, row)] = keys;
      for (int j = 0; j < std::min(sinks, w.n); ++j) keys.insert(j);
      for (int j = clustered; j <= row; ++j) keys.insert(j);
      w.out.active[w.reader(l, g, row)] = {keys.begin(), keys.end()};
      w.decide(l, near);
    }
  }
  // k-means of the keys [from, to) by cosine; centroids are plain means.
  void add(int l, int h, int from, int to, int count) {
    std::vector<int> tokens;
    for (int j = from; j < to; ++j) tokens.push_back(j);
    if (tokens.empty()) return;
    count = std::min(count, static_cast<int>(tokens.size()));
    std::vector<std::vector<double>> mu;
    for (const int j : first_centroids(l, h, tokens, count)) mu.push_back(w.k(l, h, j));
    std::vector<double> members(at(count), 1.0);  // mu is a sum: its scale changes no cosine
    std::vector<int> owner(tokens.size(), -1);
    const int iterations = w.count("iterations", 20);
    const auto assign = [&]() {
      bool moved = false;
      for (std::size_t e = 0; e < tokens.size(); ++e) {
        const std::vector<double> k = w.k(l, h, tokens[e]);
        std::vector<double> cosine;
        for (const auto& m : mu) {
          double dot = 0, mm = 0;  // the key's own norm changes no order
          for (int i = 0; i < w.d; ++i) {
            dot += k[at(i)] * m[at(i)];
            mm += m[at(i)] * m[at(i)];
          }
          cosine.push_back(mm > 0 ? dot / std::sqrt(mm) : 0);
        }
        int top = 0;
        for (int c = 1; c < count; ++c) {
          if (fp32(cosine[at(c)]) > fp32(cosine[at(top)])) top = c;
        }
        for (int c = 0; c < count; ++c) near = near || close(cosine[at(c)], cosine[at(top)]);
        moved = moved || owner[e] != top;
        owner[e] = top;
      }
      return moved;
    };
    assign();
    for (int i = 0; i < iterations; ++i) {
      for (int c = 0; c < count; ++c) {
        std::vector<double> sum(at(w.d), 0.0);
        int size = 0;
        for (std::size_t e = 0; e < tokens.size(); ++e) {
          if (owner[e] != c) continue;
          ++size;
          const std::vector<double> k = w.k(l, h, tokens[e]);
          for (int x = 0; x < w.d; ++x) sum[at(x)] += k[at(x)];
        }
        if (size == 0) continue;
        mu[at(c)] = sum;
        members[at(c)] = size;
      }
      if (!assign()) break;
    }
    for (int c = 0; c < count; ++c) {
      Cluster made{mu[at(c)], members[at(c)], {}};
      for (std::size_t e = 0; e < tokens.size(); ++e) {
        if (owner[e] == c) made.members.push_back(tokens[e]);
      }
      clusters[at(h)].push_back(made);
    }
  }
  // Distinct keys, drawn at random; they number the clusters in their order.
  [[nodiscard]] std::vector<int> first_centroids(int l, int h, const std::vector<int>& tokens,
                                                 int count) const {
    const auto seed = static_cast<std::uint64_t>(w.count("seed", 0));
    const auto head = static_cast<std::uint64_t>(w.t.layers[at(l)].model_layer * 65536 + h);
    std::vector<double> draws;
    for (const int j : tokens) {
      draws.push_back(fp32(uniform(mix(seed) ^ mix(head), {tokens[0], j - tokens[0]})));
    }
    std::vector<int> order = ranking(tokens, draws);
    order.resize(at(count));
    std::sort(order.begin(), order.end());
    return order;
  }
  [[nodiscard]] bool offloads() const { return w.word("offload", "on") == "on"; }
  bool on_device(int l, int j, int row) override {
    // Entries leave when the first row is near that does not read all of them.
    const int begin = row < w.n ? w.point : row;  // of the row's pass
    if (!offloads() || skips(l) || row < w.point || begin + 1 <= w.amount("budget")) return true;
    return j >= begin;
  }
  // Copied in: selected entries that the buffer does not hold from the row before.
  long long loads(int l, int h, int row) override {
    if (row < w.n || skips(l) || !offloads() || row + 1 <= w.amount("budget")) {
      return Policy::loads(l, h, row);
    }
    std::set<int> copied, before;
    const bool shared = w.word("buffers", "query") == "kv";
    for (int g = h * w.G; g < (h + 1) * w.G && shared; ++g) {
      const auto& past = chosen[w.reader(l, g, row - 1)];
      before.insert(past.begin(), past.end());
    }
    for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
      if (!shared) before = chosen[w.reader(l, g, row - 1)];
      for (const int j : chosen[w.reader(l, g, row)]) {
        if (!before.count(j) && w.reads(l, row, j)) copied.insert(j);
      }
    }
    return static_cast<long long>(copied.size());
  }
  // Per KV head: centroids, sizes and prefix sums, and the order of the clustered entries.
  // With offload, a preallocated buffer (the row's own entry in it is counted as an entry), slot maps
  // of the query heads, and tables that all layers share.
  long long overhead(int row, long long /*entries*/) override {
    if (row < w.point) return 0;
    long long layers = 0;
    for (int l = 0; l < w.L; ++l) layers += !skips(l);
    const int sinks = w.count("sinks", 16), every = w.count("every", 320);
    const int budget = w.amount("budget");
    const long long now = (w.has("clusters") ? w.count("clusters", 1) : std::max(1, w.point / 80)) +
                          (row - w.point) / every * w.count("added", 4);
    const long long meta =
        layers * w.Hk * (now * (2 * w.d + 8) + 4LL * std::max(0, row + 1 - sinks));
    if (!offloads() || row + 1 <= budget) return meta;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    const int buffers = w.word("buffers", "query") == "kv" ? w.Hk : w.Hq;
    const long long slots = 4LL * w.Hq * (budget - 1);
    return meta + layers * ((buffers * (sinks + budget + every) - w.Hk) * entry + slots) +
           (row + 1LL) * (w.Hq * 6 + w.Hk * 4);
  }
  std::vector<std::vector<Cluster>> clusters;   // [kv_heads]
  std::map<std::size_t, std::set<int>> chosen;  // [reader] clustered entries selected
  int clustered = 0;                            // tokens from here on are in no cluster
  bool near = false;
};

// ---- measures -------------------------------------------------------------------------------

std::vector<double> rotate(const World& w, std::vector<double> x, int shift) {
  turn(w.t.rope, w.d, shift, x);
  return x;
}

// Logits of a row when tokens are numbered by their places in the cache.
std::vector<double> renumbered(const World& w, int l, int g, int row) {
  const std::vector<int> held = w.residents(l, g / w.G, row);
  const auto slot = [&](int j) {
    return static_cast<int>(std::lower_bound(held.begin(), held.end(), j) - held.begin());
  };
  const std::vector<double> q = rotate(w, w.q(l, g, row), slot(row) - row);
  std::vector<double> z;
  for (const int j : w.out.active[w.reader(l, g, row)]) {
    z.push_back(w.reads(l, row, j) ? w.logit(q, rotate(w, w.k(l, g / w.G, j), slot(j) - j))
                                   : -kInfinity);
  }
  return z;
}

void measure(World& w, Policy& policy) {
  Outcome& out = w.out;
  out.row_mass.assign(at(w.N), 0.0);
  out.loaded.assign(at(w.N), 0);
  out.payload.assign(at(w.N), 0);
  out.overhead.assign(at(w.N), 0);
  std::vector<double> mass[2], error[2], distances;
  for (int l = 0; l < w.L; ++l) {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = 0; row < w.N; ++row) {
        std::vector<int> all(at(row + 1));
        std::iota(all.begin(), all.end(), 0);
        const std::vector<double> p = w.attention(l, g, row, all);
        const std::vector<int>& keys = out.active[w.reader(l, g, row)];
        double total = 0, kept = 0;
        for (const double x : p) total += x;
        for (const int j : keys) kept += p[at(j)];
        mass[row < w.n ? 0 : 1].push_back(kept / total);
        out.row_mass[at(row)] += kept / total / (w.L * w.Hq);
        const std::vector<double> z =
            policy.renumbers() ? renumbered(w, l, g, row) : w.logits(l, g, row, keys);
        const std::vector<double> own = w.softmax(l, g, z);
        const std::vector<double> before = w.logits(l, g, row, keys);
        double distance = 0;
        for (std::size_t e = 0; e < keys.size(); ++e) {
          if (std::isinf(z[e])) continue;
          distance += p[at(keys[e])] / kept * std::abs(z[e] - before[e]);
        }
        if (row >= w.n) distances.push_back(distance);
        double difference = 0, norm = 0;
        for (int x = 0; x < w.t.v_head_dim; ++x) {
          double full = 0, mine = 0;
          for (const int j : all) full += p[at(j)] * w.v(l, g / w.G, j, x);
          for (std::size_t e = 0; e < keys.size(); ++e)
            mine += own[e] * w.v(l, g / w.G, keys[e], x);
          difference += (mine - full) * (mine - full);
          norm += full * full;
        }
        error[row < w.n ? 0 : 1].push_back(difference == 0 ? 0 : std::sqrt(difference / norm));
      }
    }
  }
  const auto mean = [](const std::vector<double>& x) {
    return x.empty() ? kNaN
                     : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  };
  out.prefill_mass = mean(mass[0]);
  out.mass = mean(mass[1]);
  out.prefill_error = mean(error[0]);
  out.error = mean(error[1]);
  out.logit_error = mean(distances);
  for (int row = 0; row < w.N; ++row) {
    long long held = 0, device = 0;
    for (int l = 0; l < w.L; ++l) {
      for (int h = 0; h < w.Hk; ++h) {
        out.loaded[at(row)] += policy.loads(l, h, row);
        for (const int j : w.residents(l, h, row)) {
          ++held;
          device += policy.on_device(l, j, row);
        }
      }
    }
    out.payload[at(row)] = device * (w.d + w.t.v_head_dim) * 2;
    out.overhead[at(row)] = policy.overhead(row, held);
  }
}

std::unique_ptr<Policy> make(World& w, const std::string& name) {
  if (const auto plus = name.find('+'); plus != std::string::npos) {
    auto other = name.substr(plus + 1) == "quest" ? std::make_unique<Quest>(w, "quest.", "query")
                                                  : make(w, name.substr(plus + 1));
    return std::make_unique<Both>(w, make(w, name.substr(0, plus)), std::move(other));
  }
  if (name == "streaming_llm") return std::make_unique<Streaming>(w, false);
  if (name == "lambda") return std::make_unique<Streaming>(w, true);
  if (name == "scissorhands") {
    if (w.word("mode", "paper") == "paper") return std::make_unique<Scissorhands>(w);
    return std::make_unique<ScissorhandsCode>(w);
  }
  if (name == "keyformer") return std::make_unique<Keyformer>(w);
  if (name == "r_kv") return std::make_unique<Rkv>(w);
  if (name == "sagekv") return std::make_unique<SageKv>(w);
  if (name == "fastgen") return std::make_unique<FastGen>(w);
  if (name == "h2o") return std::make_unique<H2o>(w);
  if (name == "quest") return std::make_unique<Quest>(w, "", "query");
  if (name == "retroattention") return std::make_unique<Retro>(w);
  if (name == "refreshkv") return std::make_unique<RefreshKv>(w);
  if (name == "infinigen") return std::make_unique<InfiniGen>(w);
  if (name == "minference") return std::make_unique<MInference>(w);
  if (name == "clusterkv") return std::make_unique<ClusterKv>(w);
  throw std::invalid_argument("unknown policy: " + name);
}

}  // namespace

Outcome simulate(const Trace& t, const std::string& name, const Parameters& parameters,
                 const Plan& plan, const Text& text) {
  World w{t,
          parameters,
          text,
          static_cast<int>(t.layers.size()),
          t.query_heads,
          t.kv_heads,
          t.query_heads / t.kv_heads,
          t.head_dim,
          t.tokens,
          plan.prompt >= 0 ? plan.prompt : t.prompt_tokens,
          0,
          {},
          {}};
  w.point = plan.evict_at >= 0 ? plan.evict_at : w.n;
  const int step = plan.chunk > 0 ? plan.chunk : w.point;
  for (int a = 0; a < w.point; a += step) w.passes.push_back({a, std::min(a + step, w.point)});
  if (w.point < w.n) w.passes.push_back({w.point, w.n});
  for (int a = w.n; a < w.N; ++a) w.passes.push_back({a, a + 1});

  w.out.heads = w.Hk;
  w.out.death.assign(at(w.L) * at(w.Hk) * at(w.N), w.N);
  w.out.active.assign(at(w.L) * at(w.Hq) * at(w.N), {});
  w.out.near.assign(at(w.L), 0);
  const std::unique_ptr<Policy> policy = make(w, name);
  for (int l = 0; l < w.L; ++l) {
    policy->begin(l);
    for (const Pass& pass : w.passes) {
      for (int row = pass.begin; row < pass.end; ++row) {
        for (int g = 0; g < w.Hq; ++g)
          w.out.active[w.reader(l, g, row)] = w.residents(l, g / w.G, row);
      }
      policy->select(l, pass);
      policy->watch(l, pass);
      if (pass.end < w.N) policy->end(l, pass);  // after the last pass nothing has to go
    }
  }
  measure(w, *policy);
  return std::move(w.out);
}

}  // namespace kvspan::twin::decode
