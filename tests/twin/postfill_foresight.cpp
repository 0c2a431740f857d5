// SPDX-License-Identifier: Apache-2.0
// Twin of foresightkv: when it cuts, and the statistics of attention that its scorer is given.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// One query head's statistics of an entry. The rows are all so far at the first cut, the newest
// `interval` later on; each is taken over what the cache holds now.
struct Statistics {
  double max = -kInfinity, min = kInfinity;        // of the newest interval
  double sum = 0, sum8 = 0, sum16 = 0, sum32 = 0;  // the last three within an interval
};

std::vector<Statistics> statistics(const World& u, int l, int g, const Tokens& keys, int first,
                                   int b, int interval) {
  std::vector<Statistics> out(keys.size());
  for (int row = first; row < b; ++row) {
    const Values p = attention(u, l, g, row, keys);
    for (std::size_t e = 0; e < keys.size(); ++e) {
      Statistics& s = out[e];
      s.sum += p[e];
      if (row >= b - std::min(8, interval)) s.sum8 += p[e];
      if (row >= b - std::min(16, interval)) s.sum16 += p[e];
      if (row >= b - std::min(32, interval)) s.sum32 += p[e];
      if (row < b - interval) continue;
      s.max = std::max(s.max, p[e]);
      s.min = std::min(s.min, p[e]);
    }
  }
  return out;
}

double named(const Statistics& s, const Sums& sums, const std::string& name) {
  if (name == "max") return s.max;
  if (name == "min") return s.min;
  if (name == "sum8") return s.sum8;
  if (name == "sum16") return s.sum16;
  if (name == "sum32") return s.sum32;
  if (name == "acc") return sums.acc;
  if (name == "accd") return sums.decayed;
  require(name == "sum", "no such statistic");
  return s.sum;
}

}  // namespace

void foresightkv(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice& c = u.policy;
  const int interval = c.count("interval", 128), budget = budget_of(u, c), b = m.end();
  for (int h = 0; h < u.heads; ++h) {
    const Tokens& keys = m.resident[at(h)];
    if (static_cast<int>(keys.size()) < budget) continue;
    const bool first_cut = memory.begun.insert(m.l * u.heads + h).second;
    const auto [g0, g1] = readers(u.t, u.heads, h);
    Values chosen;  // of the query head that a case asks for
    for (int g = g0; g < g1; ++g) {
      const auto s =
          statistics(u, m.l, g, keys, first_cut ? 0 : std::max(0, b - interval), b, interval);
      for (std::size_t e = 0; e < keys.size(); ++e) {
        Sums& sums = memory.sums[{m.l, g, keys[e]}];
        sums.acc += s[e].sum;
        sums.decayed = 0.9 * sums.decayed + s[e].sum;
        if (g - g0 == c.count("feature_head", 0)) {
          chosen.push_back(named(s[e], sums, c.text("feature", "sum")));
        }
      }
    }
    bool near = false;
    const auto score = [&](const Tokens& entries) {
      Values x;
      for (std::size_t e = 0, i = 0; e < entries.size(); ++e) {
        while (keys[i] != entries[e]) ++i;
        x.push_back(chosen[i]);
      }
      return x;
    };
    out.kept[at(h)] = best(keys, {0, interval}, b, budget, score, near);
    if (near) out.near[at(h)] = 1;
  }
}

}  // namespace kvspan::twin::postfill
