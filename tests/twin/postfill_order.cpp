// SPDX-License-Identifier: Apache-2.0
// Twin of decoding(...): kvpress gathers what a cut keeps by falling score, and the next cut pools,
// chunks and partitions over the places in that cache.
#include <algorithm>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// SnapKV: the window's places are scored above all, the others by pooled votes.
Values snapkv_places(const World& u, const Choice& p, const Moment& m, int h, const Tokens& places,
                     int window) {
  const int older = static_cast<int>(places.size()) - window;
  const bool late = p.is("order", "pool_then_group", "group_then_pool");
  const bool max = p.is("pool", "max", "max");
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x(at(older), 0.0);
    for (int row = m.end() - window; row < m.end(); ++row) {
      const Values a = attention(u, m.l, g, row, places);
      for (int e = 0; e < older; ++e) x[at(e)] += a[at(e)];
    }
    per_head.push_back(late ? pool(x, p.count("kernel", 7), max) : x);
  }
  Values out = reduce(per_head, p.text("group", "mean"));
  if (!late) out = pool(out, p.count("kernel", 7), max);
  out.resize(places.size(), 2 * kSafe);
  return out;
}

}  // namespace

void decoding(const World& u, const Moment& m, bool due, Memory& memory, Verdict& out) {
  const Choice p = u.policy.inner();
  const int target = u.policy.count("target", 2048);
  const bool by_score = u.policy.is("order", "cache", "cache");
  for (int h = 0; h < u.heads; ++h) {
    const int head = m.l * u.heads + h;
    Tokens& places = memory.places[head];
    for (const int j : m.resident[at(h)]) {
      if (std::find(places.begin(), places.end(), j) == places.end()) places.push_back(j);
    }
    if (!by_score) std::sort(places.begin(), places.end());
    if (!due || static_cast<int>(places.size()) <= target) continue;
    bool near = memory.near_places[head] != 0;
    Tokens kept;
    if (p.name == "lagkv") {
      kept = lagkv(u, p, m.l, h, places, target, near);
    } else {
      const int window = p.name == "snapkv" ? p.count("window", 32) : 0;
      if (window >= target) {
        kept = {places.end() - target, places.end()};
      } else {
        Values score =
            window > 0 ? snapkv_places(u, p, m, h, places, window) : score_by(u, p, m, h, places);
        for (std::size_t e = 0; p.name == "cur" && e < places.size(); ++e) {
          if (static_cast<int>(e) < p.count("sinks", 4)) score[e] = 2 * kSafe;
        }
        std::vector<char> stays(places.size(), 1);
        for (const std::size_t e : drop(score, target, near)) stays[e] = 0;
        bool order = false;
        kept = laid(places, score, stays, order);
        if (order && by_score && (window > 0 || p.name == "cur")) memory.near_places[head] = 1;
      }
    }
    out.kept[at(h)] = kept;
    std::sort(out.kept[at(h)].begin(), out.kept[at(h)].end());
    if (near) out.near[at(h)] = 1;
    places = kept;
  }
}

}  // namespace kvspan::twin::postfill
