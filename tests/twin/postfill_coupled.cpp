// SPDX-License-Identifier: Apache-2.0
// Twins of budgets that all layers share. Every layer is looked at as it is at the prompt's end,
// when all of the prompt is there.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

Moment prompt_end(const World& u, int l) {
  return {l, {u.point - 1, u.point}, std::vector<Tokens>(at(u.heads), range(0, u.point))};
}

void all_near(Verdict& out) { std::fill(out.near.begin(), out.near.end(), 1); }

// A number that is about to be rounded down may be on either side.
bool hangs(double x) { return std::abs(x - std::round(x)) < 1e-6; }

}  // namespace

bool before(const Ranked& a, const Ranked& b) {
  const auto x = static_cast<float>(a.score), y = static_cast<float>(b.score);
  if (x != y) return x > y;
  return std::tie(a.token, a.layer, a.head) < std::tie(b.token, b.layer, b.head);
}

bool near_cut(const std::vector<Ranked>& list, std::size_t cut) {
  bool near = false;
  for (std::size_t i = 0; i < list.size() && cut > 0 && cut < list.size(); ++i)
    near = near || near_tie(list[i].score, list[i < cut ? cut : cut - 1].score);
  return near;
}

// What a policy protects ranks above all; the lowest of the model leave until B x heads x layers
// are left, but for the safeguard.
void global(const World& u, const Moment& m, Verdict& out) {
  const Choice p = u.policy.inner();
  const int budget = budget_of(u, p), n = u.point, skip = p.count("skip", 0);
  const Tokens candidates = candidates_of(range(0, n), safe_of(u, p), n);
  const int safe = n - static_cast<int>(candidates.size());
  const int sure = std::max(0, static_cast<int>(u.policy.real("alpha", 0) * budget) - safe);
  std::vector<Ranked> rest, own;
  std::size_t places = 0;
  std::vector<int> count(at(u.layers * u.heads), 0);
  for (int l = 0; l < u.layers; ++l) {
    if (u.t.layers[at(l)].model_layer < skip) continue;
    const Moment there = prompt_end(u, l);
    for (int h = 0; h < u.heads; ++h) {
      places += at(std::max(0, budget - safe));
      const Values score = score_by(u, p, there, h, candidates);
      std::vector<Ranked> head;
      for (std::size_t e = 0; e < score.size(); ++e)
        head.push_back({score[e], candidates[e], l, h});
      std::sort(head.begin(), head.end(), before);
      const std::size_t first = std::min(at(sure), head.size());
      count[at(l * u.heads + h)] += static_cast<int>(first);
      places -= first;
      rest.insert(rest.end(), head.begin() + static_cast<std::ptrdiff_t>(first), head.end());
    }
  }
  std::sort(rest.begin(), rest.end(), before);
  const std::size_t cut = std::min(places, rest.size());
  for (std::size_t i = 0; i < cut; ++i) ++count[at(rest[i].layer * u.heads + rest[i].head)];
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    const auto score = [&](const Tokens& entries) { return score_by(u, p, m, h, entries); };
    const int keep = safe < budget ? safe + count[at(m.l * u.heads + h)] : budget;
    out.kept[at(h)] = best(m.resident[at(h)], safe_of(u, p), n, keep, score, near);
    if (near) out.near[at(h)] = 1;
  }
  if (near_cut(rest, cut)) all_near(out);
}

namespace {

// The window's attention to what lies before it. [query head][window row][entry]
std::vector<std::vector<Values>> window_rows(const World& u, int l, int window) {
  std::vector<std::vector<Values>> out;
  for (int g = 0; g < u.t.query_heads; ++g) {
    std::vector<Values>& rows = out.emplace_back();
    for (int row = u.point - window; row < u.point; ++row) {
      Values p = attention(u, l, g, row, range(0, u.point));
      p.resize(at(u.point - window));
      rows.push_back(p);
    }
  }
  return out;
}

double mean_of(const std::vector<Values>& rows, std::size_t e) {
  double sum = 0;
  for (const Values& p : rows) sum += p[e];
  return sum / static_cast<double>(rows.size());
}

double unbiased_variance(const std::vector<Values>& rows, std::size_t e) {
  double sum = 0;
  for (const Values& p : rows) sum += std::pow(p[e] - mean_of(rows, e), 2);
  return sum / static_cast<double>(rows.size() - 1);
}

// adjust_budgets of the authors' utils.py.
std::vector<int> adjusted(std::vector<int> budgets, int total, int most) {
  const auto sum = [&] { return std::accumulate(budgets.begin(), budgets.end(), 0); };
  int excess = 0;
  for (int& b : budgets) {
    excess += std::max(0, b - most);
    b = std::min(b, most);
  }
  const auto spread = [&](int amount) {
    std::vector<std::size_t> valid;
    for (std::size_t i = 0; i < budgets.size(); ++i)
      if (budgets[i] < most) valid.push_back(i);
    if (valid.empty()) return;
    const int per = amount / static_cast<int>(valid.size());
    const int rest = amount % static_cast<int>(valid.size());
    for (std::size_t i = 0; i < valid.size(); ++i)
      budgets[valid[i]] += per + (static_cast<int>(i) < rest ? 1 : 0);
  };
  if (excess > 0) spread(excess);
  if (total > sum()) spread(total - sum());
  for (int& b : budgets) b = std::min(b, most);
  return budgets;
}

struct Shared {
  std::vector<int> budgets;  // [layers]
  bool near = false;
};

Shared cake_budgets(const World& u, int total, int window) {
  const Choice& c = u.policy;
  Values preference;
  for (int l = 0; l < u.layers; ++l) {
    double entropy = 0, variance = 0;
    for (const std::vector<Values>& rows : window_rows(u, l, window)) {
      for (std::size_t e = 0; e < rows[0].size(); ++e) {
        for (const Values& p : rows) entropy -= p[e] * std::log(p[e] + 1e-10);
        variance += unbiased_variance(rows, e);
      }
    }
    preference.push_back(std::pow(std::max(entropy, 0.0), 1 / c.real("tau1", 1)) *
                         std::pow(variance, 1 / c.real("tau2", 1)));
  }
  const double all = std::accumulate(preference.begin(), preference.end(), 0.0);
  Shared out;
  for (const double x : preference) {
    const double share = (all > 0 ? x / all : 1.0 / u.layers) * total;
    out.budgets.push_back(static_cast<int>(share));
    out.near = out.near || hangs(share);
  }
  out.budgets = adjusted(out.budgets, total, u.point - window);
  return out;
}

// hh_score: mean + gamma variance, average pooling, mean of the group.
Values cake_score(const World& u, const Moment& m, int h, int window) {
  const Choice& c = u.policy;
  const auto rows = window_rows(u, m.l, window);
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x;
    for (std::size_t e = 0; e < rows[at(g)][0].size(); ++e)
      x.push_back(mean_of(rows[at(g)], e) +
                  c.real("gamma", 200) * unbiased_variance(rows[at(g)], e));
    per_head.push_back(pool(x, c.count("kernel", 5), false));
  }
  return reduce(per_head, "mean");
}

// What topk returns: the best by falling score; then the last `window` places.
Tokens topk(const Tokens& places, const Values& score, int top, int window, bool& near,
            bool& order) {
  std::vector<std::size_t> by(score.size());
  std::iota(by.begin(), by.end(), std::size_t{0});
  std::stable_sort(by.begin(), by.end(), [&](std::size_t a, std::size_t b) {
    return static_cast<float>(score[a]) > static_cast<float>(score[b]);
  });
  (void)drop(score, top, near);
  Tokens out;
  for (std::size_t i = 0; i < std::min(at(top), by.size()); ++i) {
    if (i > 0) order = order || near_tie(score[by[i]], score[by[i - 1]]);
    out.push_back(places[by[i]]);
  }
  out.insert(out.end(), places.end() - window, places.end());
  return out;
}

}  // namespace

void cake(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice& c = u.policy;
  const int budget = budget_of(u, c), window = c.count("window", 32), n = u.point;
  if (m.end() < n) return;
  const bool left_alone = n <= budget + window;
  if (budget <= window && (!left_alone || m.end() > n)) {
    for (std::size_t h = 0; h < out.kept.size(); ++h) {
      const Tokens& all = m.resident[h];
      if (static_cast<int>(all.size()) > budget) out.kept[h] = {all.end() - budget, all.end()};
    }
    return;
  }
  Shared shared;
  if (!left_alone) shared = cake_budgets(u, (budget - window) * u.layers, window);
  for (int h = 0; h < u.heads; ++h) {
    const int head = m.l * u.heads + h;
    Tokens& places = memory.places[head];
    for (const int j : m.resident[at(h)])
      if (std::find(places.begin(), places.end(), j) == places.end()) places.push_back(j);
    bool near = shared.near || memory.near_places[head] != 0, order = false;
    const int top = left_alone ? budget - window : shared.budgets[at(m.l)];
    if (m.end() == n) {
      if (!left_alone) places = topk(places, cake_score(u, m, h, window), top, window, near, order);
    } else if (static_cast<int>(places.size()) > top + window) {
      const auto [first, last] = readers(u.t, u.heads, h);
      std::vector<Values> per_head;
      for (int g = first; g < last; ++g) {
        Values p = attention(u, m.l, g, m.end() - 1, places);
        p.resize(places.size() - at(window));
        per_head.push_back(pool(p, c.count("kernel", 5), false));
      }
      places = topk(places, reduce(per_head, "mean"), top, window, near, order);
    }
    if (order) memory.near_places[head] = 1;
    out.kept[at(h)] = places;
    std::sort(out.kept[at(h)].begin(), out.kept[at(h)].end());
    if (near) out.near[at(h)] = 1;
  }
}

namespace {

Values lava_score(const World& u, int l, int h, int window) {
  const Choice& c = u.policy;
  const auto [first, last] = readers(u.t, u.heads, h);
  const auto rows = window_rows(u, l, window);
  double norm = 0;
  for (int j = 0; j < u.point - window; ++j) {
    const double* v = value_of(u, l, u.kv_head(h), j);
    double sum = 0;
    for (int d = 0; d < u.t.v_head_dim; ++d) sum += std::abs(v[d]);
    norm = std::max(norm, sum);
  }
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x;
    for (std::size_t e = 0; e < rows[at(g)][0].size(); ++e) x.push_back(mean_of(rows[at(g)], e));
    x = pool(x, c.count("kernel", 7), true);
    for (double& s : x) s *= norm;
    per_head.push_back(x);
  }
  return reduce(per_head, "max");
}

}  // namespace

// As layers arrive: each arrival gives all so far new capacities, and whoever has more is cut.
void lava(const World& u, const Moment& m, Verdict& out) {
  const Choice& c = u.policy;
  const int n = u.point, budget = budget_of(u, c), window = std::min(c.count("window", 32), n);
  if (budget <= c.count("window", 32)) {
    if (n > budget) keep_newest(m, budget, out);
    return;
  }
  if (n <= window) return;
  const int length = n - window;
  const double alpha = c.real("alpha", 0.2), base = (budget - window) * u.layers;
  Values sparsity;
  std::vector<int> mean_seq_lens(at(u.layers), -1);  // -1: never cut
  std::vector<std::vector<int>> held(at(u.layers));  // [layers][heads] before the window
  bool near = false;
  for (int l = 0; l < u.layers; ++l) {
    std::vector<Ranked> list;
    double sum = 0;
    for (int h = 0; h < u.heads; ++h) {
      const Values score = lava_score(u, l, h, window);
      for (std::size_t e = 0; e < score.size(); ++e)
        list.push_back({score[e], static_cast<int>(e), 0, h});
      sum = std::accumulate(score.begin(), score.end(), sum);
    }
    double entropy = 0;
    for (const Ranked& e : list) {
      const double p = e.score / (sum + 1e-16);
      entropy -= p * std::log(p + 1e-16);
    }
    sparsity.push_back(list.size() > 1
                           ? std::max(0.0, entropy / std::log(static_cast<double>(list.size())))
                           : 0.0);
    const double total = std::accumulate(sparsity.begin(), sparsity.end(), 0.0);
    for (int i = 0; i <= l; ++i) {
      // Of a sum of nothing the last arrival decides.
      const double density =
          total > 0 ? sparsity[at(i)] / total * base : base / static_cast<double>(l + 1);
      const int capacity = static_cast<int>(density);
      if (l + 1 == u.layers) near = near || hangs(density);
      int& mean = mean_seq_lens[at(i)];
      if (capacity > (mean < 0 ? length : mean)) continue;
      mean = capacity;
      std::vector<Ranked> scores;
      for (int h = 0; h < u.heads; ++h) {
        const Values score = lava_score(u, i, h, window);
        for (std::size_t e = 0; e < score.size(); ++e)
          scores.push_back({score[e], static_cast<int>(e), 0, h});
      }
      std::sort(scores.begin(), scores.end(), before);
      if (i == m.l) near = near || near_cut(scores, at(u.heads * capacity));
      std::vector<int> count(at(u.heads), 0);
      for (int k = 0; k < u.heads * capacity; ++k) ++count[at(scores[at(k)].head)];
      const int floor =
          static_cast<int>(alpha * (c.is("floor", "layer", "code") ? capacity : budget));
      held[at(i)].resize(at(u.heads), length);
      for (int h = 0; h < u.heads; ++h) {
        held[at(i)][at(h)] =
            std::min(held[at(i)][at(h)], half_even(count[at(h)] * (1 - alpha) + floor));
      }
    }
  }
  for (int h = 0; h < u.heads && !held[at(m.l)].empty(); ++h) {
    bool own = false;
    Tokens gone;
    for (const std::size_t e : drop(lava_score(u, m.l, h, window), held[at(m.l)][at(h)], own))
      gone.push_back(static_cast<int>(e));
    out.kept[at(h)] = without(m.resident[at(h)], gone);
    if (own || near) out.near[at(h)] = 1;
  }
}

}  // namespace kvspan::twin::postfill
