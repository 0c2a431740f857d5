// SPDX-License-Identifier: Apache-2.0
// What every decode-time twin sees and is: the cache, attention, decisions; one policy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/twin/catalogue_decode.h"
#include "tests/twin/parts.h"

namespace kvspan::twin::decode {

inline constexpr double kNear = 1e-5;

[[nodiscard]] double fp32(double x);

// Unequal, but by so little that another order of the same sums may turn it round.
[[nodiscard]] bool close(double a, double b);

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
  // Tokens; bytes over all layers and KV heads; or a share of the prompt: the exact decimal
  // product, rounded down, at least 1.
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
[[nodiscard]] std::vector<int> ranking(const std::vector<int>& from,
                                       const std::vector<double>& scores);

struct Policy {
  explicit Policy(World& world) : w(world) {}
  virtual ~Policy() = default;
  virtual void begin(int /*l*/) {}
  virtual void select(int /*l*/, Pass /*pass*/) {}  // may shorten w.out.active of the pass's rows
  virtual void watch(int /*l*/, Pass /*pass*/) {}   // the rows have attended
  virtual void end(int /*l*/, Pass /*pass*/) {}     // evicts
  // Entries read in a row by one stored head, where that is not the union of what its heads attend
  // to.
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

}  // namespace kvspan::twin::decode
