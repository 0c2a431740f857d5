// SPDX-License-Identifier: Apache-2.0
// Twin of fastgen.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

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

}  // namespace

std::unique_ptr<Policy> fastgen(World& w) { return std::make_unique<FastGen>(w); }

}  // namespace kvspan::twin::decode
