// SPDX-License-Identifier: Apache-2.0
// Twin of sagekv.
#include <cmath>
#include <memory>
#include <set>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

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

}  // namespace

std::unique_ptr<Policy> sagekv(World& w) { return std::make_unique<SageKv>(w); }

}  // namespace kvspan::twin::decode
