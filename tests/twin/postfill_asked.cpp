// SPDX-License-Identifier: Apache-2.0
// Twins of what looks at rows that were asked for it: kvzip and kvcompose at rows replayed beside
// the sequence, finch at the question's.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

using Probe = Tables::Probe;

// What a replayed row gives `keys`. It also reads the rows of its pass up to itself. `plain`: a
// softmax of products, as a scorer computes it beside the model, whose own may have more to it.
Values asked(const World& u, int l, int g, const Probe& p, int r, const Tokens& keys, bool plain) {
  const Trace& t = u.t;
  const Layer& layer = t.layers[at(l)];
  const int d = t.head_dim, h = g / (t.query_heads / t.kv_heads);
  const double* q =
      u.tables.probe_q[at(l)].data() + (at(p.first + r) * at(t.query_heads) + at(g)) * at(d);
  Values z;
  const auto add = [&](const double* k, int position) {
    double sum = 0;
    for (int i = 0; i < d; ++i) sum += q[i] * k[i];
    sum *= t.score_scale;
    if (t.softcap > 0 && !plain) sum = t.softcap * std::tanh(sum / t.softcap);
    const bool seen =
        plain || layer.sliding_window == 0 || position > p.at + r - layer.sliding_window;
    z.push_back(seen ? sum : -kInfinity);
  };
  for (const int j : keys) add(key_of(u, l, h, j), j);
  for (int i = 0; i <= r; ++i) {
    add(u.tables.probe_k[at(l)].data() + (at(p.first + i) * at(t.kv_heads) + at(h)) * at(d),
        p.at + i);
  }
  Values out = softmax_of(plain ? Layer{} : layer, g, z);
  out.resize(keys.size());
  return out;
}

// || Wo v || of what one query head makes of a value.
double projected(const World& u, int l, int g, int token) {
  const Trace& t = u.t;
  const int dv = t.v_head_dim, width = t.query_heads * dv;
  const double* v = value_of(u, l, g / (t.query_heads / t.kv_heads), token);
  const Values& wo = u.tables.wo[at(l)];
  double square = 0;
  for (int x = 0; x < static_cast<int>(wo.size()) / width; ++x) {
    double sum = 0;
    for (int i = 0; i < dv; ++i) sum += wo[at(x * width + g * dv + i)] * v[i];
    square += sum * sum;
  }
  return std::sqrt(square);
}

int asked_sinks(const World& u) {
  const bool all = u.policy.is("sinks", "auto", "auto");
  return all ? u.tables.probes.front().begin : u.policy.count("sinks", 0);
}

// The most that a row which asks for a chunk gives an entry of it, with the sinks, the chunk and
// its own pass before it. Entries that nobody asks for: 0.
Values kvzip_score(const World& u, int l, int h) {
  Values out(at(u.point), 0.0);
  const bool plus = u.policy.is("plus", "true", "false");
  for (const Probe& p : u.tables.probes) {
    const int sinks = std::min(asked_sinks(u), p.begin);
    Tokens keys = range(0, sinks);
    for (int j = p.begin; j < p.end; ++j) keys.push_back(j);
    const auto [first, last] = readers(u.t, u.heads, h);
    for (int g = first; g < last; ++g) {
      for (int r = 0; r < p.rows; ++r) {
        const Values a = asked(u, l, g, p, r, keys, true);
        for (int j = p.begin; j < std::min(p.end, u.point); ++j) {
          double score = a[at(sinks + j - p.begin)];
          if (plus) score *= projected(u, l, g, j) / u.tables.probe_norm[at(l)][at(p.first + r)];
          out[at(j)] = std::max(out[at(j)], score);
        }
      }
    }
  }
  return out;
}

// Tokens that were read before the model was asked; those behind them, a question, stay.
int context_of(const World& u) {
  int most = 0;
  for (const Probe& p : u.tables.probes) most = std::max(most, p.at);
  return most;
}

}  // namespace

void kvzip(const World& u, const Moment& m, Verdict& out) {
  const int budget = budget_of(u, u.policy), n = u.point;
  if (budget >= n) return;
  const int sinks = asked_sinks(u), end = context_of(u);
  Tokens safe = range(0, sinks);
  for (int j = end; j < n; ++j) safe.push_back(j);
  if (static_cast<int>(safe.size()) >= budget) {
    for (Tokens& kept : out.kept) kept = {safe.end() - budget, safe.end()};
    return;
  }
  const std::string cut = u.policy.text("cut", "model");
  std::vector<std::vector<Ranked>> rankings(cut == "head" ? at(u.heads) : 1);
  for (int l = 0; l < u.layers; ++l) {
    if (cut != "model" && l != m.l) continue;
    for (int h = 0; h < u.heads; ++h) {
      const Values score = kvzip_score(u, l, h);
      for (int j = sinks; j < end; ++j)
        rankings[cut == "head" ? at(h) : 0].push_back({score[at(j)], j, l, h});
    }
  }
  for (Tokens& kept : out.kept) kept = safe;
  for (std::size_t i = 0; i < rankings.size(); ++i) {
    std::vector<Ranked>& all = rankings[i];
    std::sort(all.begin(), all.end(), before);
    const std::size_t places = all.size() / at(end - sinks) * (at(budget) - safe.size());
    for (std::size_t e = 0; e < places; ++e)
      if (all[e].layer == m.l) out.kept[at(all[e].head)].push_back(all[e].token);
    if (!near_cut(all, places)) continue;
    if (cut == "head") {
      out.near[i] = 1;
    } else {
      std::fill(out.near.begin(), out.near.end(), 1);
    }
  }
  for (Tokens& kept : out.kept) std::sort(kept.begin(), kept.end());
}

// KVComposePress: the most of a replayed row over the whole context, the group's mean, and on top
// the layer's mean. The r-th best entries of the heads are one composite token.
void kvcompose(const World& u, const Moment& m, Verdict& out) {
  const int n = context_of(u), behind = u.point - n, budget = budget_of(u, u.policy) - behind;
  if (budget >= n) return;
  if (budget <= 0) return keep_newest(m, budget + behind, out);
  std::vector<std::vector<Values>> scores;
  for (int l = 0; l < u.layers; ++l) {
    std::vector<Values>& layer = scores.emplace_back();
    for (int h = 0; h < u.heads; ++h) {
      std::vector<Values> group;
      const auto [first, last] = readers(u.t, u.heads, h);
      for (int g = first; g < last; ++g) {
        Values& most = group.emplace_back(at(n), 0.0);
        for (const Probe& p : u.tables.probes) {
          for (int r = 0; r < p.rows; ++r) {
            const Values a = asked(u, l, g, p, r, range(0, p.at), false);
            for (int j = 0; j < n; ++j) most[at(j)] = std::max(most[at(j)], a[at(j)]);
          }
        }
      }
      layer.push_back(reduce(group, "mean"));
    }
    const Values shared = reduce(layer, "mean");
    for (Values& own : layer)
      for (int j = 0; j < n; ++j) own[at(j)] += shared[at(j)];
  }
  const bool alone = u.policy.is("form", "heads", "layers");
  std::vector<Ranked> list;
  std::vector<Values> composite(at(u.layers), Values(at(n), 0.0));
  for (int l = 0; l < u.layers; ++l) {
    for (int h = 0; h < u.heads; ++h) {
      Values sorted = scores[at(l)][at(h)];
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (int r = 0; r < n; ++r) {
        composite[at(l)][at(r)] += sorted[at(r)] / u.heads;
        if (alone) list.push_back({sorted[at(r)], r, l, h});
      }
    }
  }
  for (int r = 0; r < n && !alone; ++r) {
    for (int l = 1; l < u.layers; ++l)
      composite[0][at(r)] = std::max(composite[0][at(r)], composite[at(l)][at(r)]);
    for (int l = 0; l < u.layers; ++l) list.push_back({composite[at(l)][at(r)], r, l, 0});
  }
  std::sort(list.begin(), list.end(), before);
  const std::size_t places = list.size() / at(n) * at(budget);
  std::vector<int> count(at(u.heads), 0);
  for (std::size_t e = 0; e < places; ++e) {
    if (list[e].layer == m.l) ++count[at(list[e].head)];
  }
  const bool near = near_cut(list, places);
  for (int h = 0; h < u.heads; ++h) {
    bool own = false;
    Tokens gone;
    const Values& score = scores[at(m.l)][at(h)];
    for (const std::size_t e : drop(score, count[alone ? at(h) : 0], own))
      gone.push_back(static_cast<int>(e));
    out.kept[at(h)] = without(m.resident[at(h)], gone);
    if (own || near) out.near[at(h)] = 1;
  }
}

int question_rows(const World& u, const Choice& c) {
  if (!c.is("window", "auto", "auto")) return std::min(c.count("window", 0), u.point);
  for (const Trace::Span& s : u.t.spans)
    if (s.name == "question") return u.point - s.begin;
  return 0;
}

// FinchPress: means of the question's rows, each times its index, then of the group.
Values finch(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const bool normalise = c.is("normalise", "true", "true");
  const int window = question_rows(u, c);
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x(entries.size(), 0.0);
    for (int row = m.end() - window; row < m.end(); ++row) {
      const Values p = full_attention(u, m.l, g, row);
      for (std::size_t e = 0; e < entries.size(); ++e)
        x[e] += p[at(entries[e])] * (normalise ? row : 1) / window;
    }
    per_head.push_back(x);
  }
  return reduce(per_head, "mean");
}

// Keys turned to their places in the cache; a row stands behind what it reads.
Values renumbered(const World& u, int l, int g, int row, const Tokens& held) {
  const Layer& layer = u.t.layers[at(l)];
  const int here = static_cast<int>(held.size()) - 1;
  const Values q = query(u.t, layer, g, row, here - row);
  Values z = raw_logits(u.t, layer, g, q, row, held);
  for (int slot = 0; slot <= here; ++slot) {
    if (std::isinf(z[at(slot)])) continue;
    const double* k = key_of(u, l, g / (u.t.query_heads / u.t.kv_heads), held[at(slot)]);
    Values turned(k, k + u.t.head_dim);
    turn(u.t.rope, u.t.head_dim, slot - held[at(slot)], turned);
    double sum = 0;
    for (int i = 0; i < u.t.head_dim; ++i) sum += q[at(i)] * turned[at(i)];
    sum *= u.t.score_scale;
    z[at(slot)] = u.t.softcap > 0 ? u.t.softcap * std::tanh(sum / u.t.softcap) : sum;
  }
  return softmax_of(layer, g, z);
}

}  // namespace kvspan::twin::postfill
