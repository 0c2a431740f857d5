// SPDX-License-Identifier: Apache-2.0
// Twins of vase and caote(), which look at values, of trimkv, whose scores fade, and of lukv's
// budgets.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// EvictLayer's v_magnitude of one value.
double size_of(const World& u, const double* v) {
  const int dv = u.t.v_head_dim;
  if (u.policy.is("size", "range", "range"))
    return *std::max_element(v, v + dv) - *std::min_element(v, v + dv);
  if (u.policy.is("size", "l2", "range")) return std::sqrt(squared_norm(v, dv));
  const double centre = std::accumulate(v, v + dv, 0.0) / dv;
  double sum = 0;
  for (int i = 0; i < dv; ++i) sum += (v[i] - centre) * (v[i] - centre);
  return sum / (dv - 1);
}

// The lengths of key and value under one random projection, multiplied.
Values sketched(const World& u, const Moment& m, int h, const Tokens& old) {
  const int d = u.t.head_dim, columns = u.policy.count("sketch", 20);
  const auto draw = [&](int cell, int which) {
    return uniform(static_cast<std::uint64_t>(u.policy.count("seed", 0)),
                   {u.t.layers[at(m.l)].model_layer, m.end(), cell, which});
  };
  Values out(old.size(), 0.0);
  for (std::size_t e = 0; e < old.size(); ++e) {
    const double* k = key_of(u, m.l, u.kv_head(h), old[e]);
    const double* v = value_of(u, m.l, u.kv_head(h), old[e]);
    double keys = 0, values = 0;
    for (int c = 0; c < columns; ++c) {
      double x = 0, y = 0;
      for (int i = 0; i < d; ++i) {
        const double g = std::sqrt(-2 * std::log(draw(c * d + i, 0))) *
                         std::cos(2 * std::numbers::pi * draw(c * d + i, 1));
        x += k[i] * g;
        y += v[i] * g;
      }
      keys += x * x / columns;
      values += y * y / columns;
    }
    out[e] = keys * values;
  }
  return out;
}

// Votes of the newest rows over the places before them, which are all that they see here: a softmax
// of products, whatever more there is to the model's.
Values vase_votes(const World& u, const Moment& m, int h, const Tokens& old, int rows) {
  std::vector<Values> per_head;
  const auto [first, last] = readers(u.t, u.heads, h);
  for (int g = first; g < last; ++g) {
    Values x(old.size(), 0.0);
    for (int row = m.end() - rows; row < m.end(); ++row) {
      const Values q = query(u.t, u.t.layers[at(m.l)], g, row, 0);
      Values z;
      for (const int j : old) {
        const double* k = key_of(u, m.l, u.kv_head(h), j);
        z.push_back(std::inner_product(q.begin(), q.end(), k, 0.0) * u.t.score_scale);
      }
      const Values p = softmax_of({}, g, z);
      for (std::size_t e = 0; e < old.size(); ++e) x[e] += p[e] / rows;
    }
    per_head.push_back(pool(x, u.policy.count("kernel", 5), false));
  }
  return reduce(per_head, "mean");
}

Tokens take(const Tokens& places, const Values& score, int count, bool& near, bool& order) {
  std::vector<char> stays(places.size(), 1);
  for (const std::size_t e : drop(score, count, near)) stays[e] = 0;
  return laid(places, score, stays, order);
}

}  // namespace

// What it keeps lies in the cache as it was picked: the large values by falling size, the draws as
// they fell, the buffer.
void vase(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice& c = u.policy;
  const int budget = budget_of(u, c), buffer = c.count("buffer", 64), sinks = c.count("sinks", 4);
  for (int h = 0; h < u.heads; ++h) {
    const int head = m.l * u.heads + h;
    Tokens& places = memory.places[head];
    for (int j = m.pass.begin; j < m.end(); ++j) places.push_back(j);
    const int held = static_cast<int>(places.size());
    if (m.pass.begin < u.prompt || held <= budget || held % buffer != 0) continue;
    const int keep = budget - buffer;
    const Tokens old(places.begin(), places.end() - buffer);
    bool near = memory.near_places[head] != 0, order = false;
    Tokens kept;
    if (c.is("form", "dkv", "attnv")) {
      Values score = sketched(u, m, h, old);
      const double all = std::accumulate(score.begin(), score.end(), 0.0);
      for (std::size_t e = 0; e < old.size(); ++e)
        score[e] = static_cast<int>(e) < sinks ? kSafe : score[e] / all;
      bool unused = false;
      kept = take(old, score, keep, near, unused);
    } else {
      const int large = c.is("large", "auto", "auto") ? budget / 4 : c.count("large", 0);
      Values size, weight = vase_votes(u, m, h, old, buffer), race;
      for (std::size_t e = 0; e < old.size(); ++e) {
        const double* v = value_of(u, m.l, u.kv_head(h), old[e]);
        size.push_back(static_cast<int>(e) < sinks ? kSafe : size_of(u, v));
      }
      kept = take(old, size, large, near, order);
      // A draw without replacement in the shares of the weights: whose clock rings first.
      const Tokens rest = without(old, kept);
      for (const int j : rest) {
        const auto e = std::find(old.begin(), old.end(), j) - old.begin();
        const double clock = -std::log(uniform(static_cast<std::uint64_t>(c.count("seed", 0)),
                                               {u.t.layers[at(m.l)].model_layer, h, j, m.end()}));
        race.push_back(weight[static_cast<std::size_t>(e)] / clock);
      }
      // Not laid(): a ratio may be larger than what is safe.
      std::vector<char> stays(rest.size(), 1);
      for (const std::size_t e : drop(race, keep - large, near)) stays[e] = 0;
      std::vector<std::size_t> by;
      for (std::size_t e = 0; e < rest.size(); ++e)
        if (stays[e] != 0) by.push_back(e);
      std::stable_sort(by.begin(), by.end(),
                       [&](std::size_t a, std::size_t b) { return race[a] > race[b]; });
      for (std::size_t i = 0; i < by.size(); ++i) {
        kept.push_back(rest[by[i]]);
        order = order || (i > 0 && near_tie(race[by[i]], race[by[i - 1]]));
      }
    }
    kept.insert(kept.end(), places.end() - buffer, places.end());
    places = kept;
    std::sort(kept.begin(), kept.end());
    out.kept[at(h)] = kept;
    if (near) out.near[at(h)] = 1;
    if (order) memory.near_places[head] = 1;
  }
}

// TrimKVCache.compress_layer(): the age of a token is one more than the rows since it.
Values trimkv(const World& u, const Moment& m, int h, const Tokens& entries) {
  Values out;
  for (const int j : entries) {
    double score = u.tables.scores[u.flat(m.l, h, j)] * (m.end() + 1 - j);
    if (u.policy.is("keys", "true", "false"))
      score += std::log(std::sqrt(squared_norm(key_of(u, m.l, u.kv_head(h), j), u.t.head_dim)));
    out.push_back(score);
  }
  return out;
}

// LUKVPress: what leaves each head of a layer, by the curve at the whole percent that leaves.
std::vector<int> lukv_counts(const World& u, const Moment& m, int budget) {
  const int n = u.point;
  const double percent = 100.0 * (n - budget) / n;
  const int target = std::clamp(half_even(percent) - 1, 0, 98);
  Values ideal;
  std::vector<int> out;
  double all = 0;
  for (int h = 0; h < u.heads; ++h) {
    const double leaves = u.tables.curve[at((target * u.layers + m.l) * u.heads + h)];
    ideal.push_back(std::clamp(1 - leaves, 0.0, 1.0) * n);
    out.push_back(static_cast<int>(std::floor(ideal.back())));
    all += ideal.back();
  }
  const int total = std::clamp(half_even(all), u.heads, u.heads * n);
  int more = std::min(u.heads, total - std::accumulate(out.begin(), out.end(), 0));
  std::vector<char> given(at(u.heads), 0);
  for (; more > 0; --more) {
    int next = -1;
    for (int h = 0; h < u.heads; ++h) {
      const auto part = [&](int i) { return ideal[at(i)] - std::floor(ideal[at(i)]); };
      if (given[at(h)] == 0 && (next < 0 || part(h) > part(next))) next = h;
    }
    given[at(next)] = 1;
    ++out[at(next)];
  }
  for (int& count : out) count = std::clamp(count, 1, n);
  return out;
}

namespace {

// H2O's sums of what the rows so far gave an entry, over the group.
Values h2o_sums(const World& u, const Moment& m, int h, const Tokens& entries, Memory& memory) {
  const auto [first, last] = readers(u.t, u.heads, h);
  Values out(entries.size(), 0.0);
  for (int g = first; g < last; ++g) {
    for (std::size_t e = 0; e < entries.size(); ++e)
      out[e] += memory.sums[{m.l, g, entries[e]}].acc;
  }
  return out;
}

void add_row_sums(const World& u, const Moment& m, Memory& memory) {
  for (int g = 0; g < u.t.query_heads; ++g) {
    const Tokens& held = m.resident[at(g / u.group())];
    for (int row = m.pass.begin; row < m.end(); ++row) {
      const Values p = attention(u, m.l, g, row, held);
      for (std::size_t e = 0; e < held.size(); ++e) memory.sums[{m.l, g, held[e]}].acc += p[e];
    }
  }
}

}  // namespace

// What the output of the attention loses with an entry, for shares a of those that may leave:
// a / (1 - a) || o - v ||.
void caote(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice p = u.policy.inner();
  const bool h2o = p.name == "h2o";
  if (h2o) add_row_sums(u, m, memory);
  if (h2o ? m.end() < u.point : m.end() != u.point) return;
  const int budget = budget_of(u, p), dv = u.t.v_head_dim;
  const Safe safe = h2o ? Safe{0, budget - budget / 2} : safe_of(u, p);
  for (int h = 0; h < u.heads; ++h) {
    const auto score = [&](const Tokens& entries) {
      Values a = h2o ? h2o_sums(u, m, h, entries, memory) : score_by(u, p, m, h, entries);
      const double all = std::accumulate(a.begin(), a.end(), 0.0);
      Values o(at(dv), 0.0);
      for (std::size_t e = 0; e < entries.size(); ++e) {
        a[e] /= all;
        const double weight =
            u.policy.is("fast", "true", "false") ? 1.0 / static_cast<double>(entries.size()) : a[e];
        for (int i = 0; i < dv; ++i)
          o[at(i)] += weight * value_of(u, m.l, u.kv_head(h), entries[e])[i];
      }
      Values c;
      for (std::size_t e = 0; e < entries.size(); ++e) {
        Values lost = o;
        for (int i = 0; i < dv; ++i) lost[at(i)] -= value_of(u, m.l, u.kv_head(h), entries[e])[i];
        c.push_back(a[e] / (1 - a[e]) * std::sqrt(squared_norm(lost.data(), dv)));
      }
      return c;
    };
    bool near = false;
    out.kept[at(h)] = best(m.resident[at(h)], safe, m.end(), budget, score, near);
    if (near) out.near[at(h)] = 1;
  }
}

}  // namespace kvspan::twin::postfill
