// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <vector>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin::stores {
namespace {

// Heavy hitters of the first entries of `domain` and the newest `recent`: what goes.
std::vector<int> h2o_victims(const Setup& u, const LayerState& s, int h, int b, int heavy,
                             int recent, const std::vector<int>& domain, bool& near) {
  if (static_cast<int>(domain.size()) <= heavy + recent) return {};
  const int group = u.trace.query_heads / u.trace.kv_heads;
  std::vector<int> older;
  std::vector<double> scores;
  for (const int j : domain) {
    if (j >= b - recent) continue;
    older.push_back(j);
    double sum = 0;
    for (int g = h * group; g < (h + 1) * group; ++g) sum += s.column_sum[at(g)][at(j)];
    scores.push_back(sum);
  }
  std::vector<int> out;
  for (const std::size_t e : losers(scores, heavy, near)) out.push_back(older[e]);
  return out;
}

// SnapKV of the rows before b.
std::vector<int> snapkv_victims(const Setup& u, const LayerState& s, int h, int b, int budget,
                                const std::string& name, int window, const std::vector<int>& domain,
                                bool& near) {
  const Trace& t = u.trace;
  if (static_cast<int>(domain.size()) <= budget) return {};
  const int w = std::min(u.number(name + ".window", window), b);
  if (budget <= w) return {domain.begin(), domain.end() - budget};
  const int group = t.query_heads / t.kv_heads;
  const std::vector<int> older(domain.begin(), domain.end() - w);
  const bool max_pool = u.text(name + ".pool", "max") == "max";
  const bool pool_first = u.text(name + ".order", "group_then_pool") == "pool_then_group";
  const std::string reduce = u.text(name + ".group", "mean");
  const int kernel = u.number(name + ".kernel", 7);
  std::vector<double> scores;
  for (int g = h * group; g < (h + 1) * group; ++g) {
    std::vector<double> votes(older.size(), 0.0);
    for (int i = b - w; i < b; ++i) {
      const std::vector<double> q = stored(s.layer->q, t.query_heads, t.head_dim, i, g);
      std::vector<double> z(domain.size(), -kInfinity);
      for (std::size_t e = 0; e < domain.size(); ++e) {
        if (!readable(*s.layer, i, domain[e])) continue;
        z[e] = logit(t, q, stored(s.layer->k, t.kv_heads, t.head_dim, domain[e], h), true);
      }
      const std::vector<double> p = softmax(*s.layer, g, z);
      for (std::size_t e = 0; e < older.size(); ++e) votes[e] += p[e];
    }
    if (pool_first) votes = pool(votes, kernel, max_pool);
    if (g == h * group) {
      scores = votes;
      continue;
    }
    for (std::size_t e = 0; e < scores.size(); ++e) {
      scores[e] = reduce == "max" ? std::max(scores[e], votes[e]) : scores[e] + votes[e];
    }
  }
  if (reduce == "mean") {
    for (double& x : scores) x /= group;
  }
  if (!pool_first) scores = pool(scores, kernel, max_pool);
  std::vector<int> out;
  for (const std::size_t e : losers(scores, budget - w, near)) out.push_back(older[e]);
  return out;
}

}  // namespace

std::vector<int> victims(const Setup& u, const LayerState& s, int h, Pass pass,
                         const std::vector<int>& given, bool& near) {
  const int b = pass.end;
  std::vector<int> domain;
  for (int j = 0; j < b; ++j) {
    const Entry& e = s.entries[at(h)][at(j)];
    if (e.alive && e.competes) domain.push_back(j);
  }
  std::vector<int> out;
  const bool quantised_pruning = u.store == "qpruningkv";
  const auto budget_of = [&](const std::string& name) {
    const std::string written = u.text(name + ".budget", "20%");
    const bool bytes = written.back() == 'B';
    const int factor = quantised_pruning && !bytes ? 16 / u.number("qpruningkv.bits", 4) : 1;
    return factor * u.budget(written);
  };

  if (u.evictor == "given") {
    for (const int j : domain) {
      const std::size_t flat = (at(s.index) * at(u.heads) + at(h)) * at(u.trace.tokens) + at(j);
      if (given[flat] <= b) out.push_back(j);
    }
  } else if (u.evictor == "streaming_llm") {
    int sinks = u.number("streaming_llm.sinks", 4), window = u.number("streaming_llm.window", 1020);
    // What it keeps counts as its budget: more of the newest at lower precision.
    if (quantised_pruning) window = 16 / u.number("qpruningkv.bits", 4) * (sinks + window) - sinks;
    if (u.has("streaming_llm.budget")) {
      const int budget = budget_of("streaming_llm");
      sinks = std::min(4, budget);
      window = budget - sinks;
    }
    for (const int j : domain) {
      if (j >= sinks && j < b - window) out.push_back(j);
    }
  } else if (u.evictor == "snapkv" || (u.evictor.empty() && quantised_pruning)) {
    const std::string name = u.evictor.empty() ? u.store : u.evictor;
    const int budget = budget_of(name);
    if (b == u.point) {
      out = snapkv_victims(u, s, h, b, budget, name, u.evictor.empty() ? 8 : 32, domain, near);
    }
  } else if (u.evictor == "h2o" || (u.evictor.empty() && u.store == "less")) {
    const std::string name = u.evictor.empty() ? u.store : u.evictor;
    int budget = budget_of(name);
    if (u.text("less.variant", "fit") == "plus") budget += u.number("less.rank", 8) / 2;
    int heavy = budget / 2, recent = budget - heavy;
    if (u.has(name + ".heavy")) {
      heavy = u.number(name + ".heavy", 0);
      recent = u.number(name + ".recent", 0);
    }
    if (b >= u.point) out = h2o_victims(u, s, h, b, heavy, recent, domain, near);
  } else if (u.evictor.empty() && u.store == "mikv") {
    const int length = u.text("mikv.ratio_mode", "running") == "running" ? b : u.point;
    const int high = std::max(1, floor_of(parse_share(u.text("mikv.ratio", "20%")), length));
    Fraction heavy = parse_share(u.text("mikv.recent", "50%"));
    heavy.top = heavy.bottom - heavy.top;  // of an odd number the newest have one more
    const int top = floor_of(heavy, high);
    if (b >= u.point) out = h2o_victims(u, s, h, b, top, high - top, domain, near);
  }
  return out;
}

}  // namespace kvspan::twin::stores
