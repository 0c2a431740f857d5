// SPDX-License-Identifier: Apache-2.0
// Twins that spread a budget over heads and layers.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// One list of all heads' candidates, best first; ties to the lower token, then the lower head.
struct Place {
  double score;
  int token, head;
};

std::vector<Place> one_list(const Ballot& x) {
  std::vector<Place> list;
  for (std::size_t h = 0; h < x.votes.size(); ++h) {
    for (std::size_t e = 0; e < x.candidates.size(); ++e) {
      list.push_back({x.votes[h][e], x.candidates[e], static_cast<int>(h)});
    }
  }
  std::stable_sort(list.begin(), list.end(), [](const Place& a, const Place& b) {
    const auto x32 = static_cast<float>(a.score), y32 = static_cast<float>(b.score);
    if (x32 != y32) return x32 > y32;
    return a.token != b.token ? a.token < b.token : a.head < b.head;
  });
  return list;
}

bool near_cut(const std::vector<Place>& list, int cut) {
  bool near = false;
  for (int i = 0; i < static_cast<int>(list.size()) && cut > 0 && at(cut) < list.size(); ++i) {
    near = near || near_tie(list[at(i)].score, list[at(i < cut ? cut : cut - 1)].score);
  }
  return near;
}

}  // namespace

namespace {

// The layer's row `row`: how much of it lies on the sinks and the newest columns, its own among
// them. Where they overlap there is nothing to cut.
double streamed(const World& u, int l, int row, int sinks, int recent) {
  double sum = 0;
  for (int g = 0; g < u.t.query_heads; ++g) {
    const Values p = full_attention(u, l, g, row);
    for (int j = 0; j <= row; ++j) {
      if (j < sinks) sum += p[at(j)] / u.t.query_heads;
      if (j > row - recent) sum += p[at(j)] / u.t.query_heads;
    }
  }
  return sum;
}

// kvpress: the last rows of the prompt, without their own columns.
double streamed_before(const World& u, int l, int b, int sinks, int recent, int last) {
  double sum = 0;
  for (int g = 0; g < u.t.query_heads; ++g) {
    for (int row = b - last; row < b; ++row) {
      const Values p = full_attention(u, l, g, row);
      for (int j = 0; j < b - last; ++j) {
        if (j < sinks || j >= b - last - recent) sum += p[at(j)] / (last * u.t.query_heads);
      }
    }
  }
  return sum;
}

}  // namespace

void simlayerkv(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice& c = u.policy;
  const bool code = c.is("variant", "code", "code");
  const int sinks = c.count("sinks", 4), recent = c.count("recent", 1024);
  const int last = c.count("last", 1), b = m.end();
  const int judged = code ? u.prompt + 1 : u.point;
  if (b == judged && b > sinks + recent + (code ? 0 : last)) {
    const double sum = code ? streamed(u, m.l, b - 1, sinks, recent)
                            : streamed_before(u, m.l, b, sinks, recent, last);
    const double threshold = c.real("threshold", 0.9);
    memory.lazy[at(m.l)] = sum > threshold ? 1 : 0;
    if (near_tie(sum, threshold)) std::fill(out.near.begin(), out.near.end(), 1);
  }
  const bool again = b > judged && c.is("decode", "stream", "append");
  if (memory.lazy[at(m.l)] == 0 || (b != judged && !again)) return;
  for (Tokens& kept : out.kept) {
    kept = without(kept, candidates_of(kept, {sinks, code ? recent : recent - last}, b));
  }
}

Ballot ballot(const World& u, const Choice& c, const Moment& m, int window) {
  Ballot out;
  out.candidates = range(0, m.end() - window);
  for (int h = 0; h < u.heads; ++h) {
    out.votes.push_back(votes(u, c, m, h, out.candidates, window));
  }
  return out;
}

void keep_voted(const Ballot& x, const Moment& m, int h, int top, Verdict& out) {
  bool near = false;
  Tokens gone;
  for (const std::size_t e : drop(x.votes[at(h)], top, near)) gone.push_back(x.candidates[e]);
  out.kept[at(h)] = without(m.resident[at(h)], gone);
  if (near) out.near[at(h)] = 1;
}

void keep_newest(const Moment& m, int count, Verdict& out) {
  for (std::size_t h = 0; h < out.kept.size(); ++h) {
    out.kept[h] = {m.resident[h].end() - count, m.resident[h].end()};
  }
}

namespace {

// Ada-PyramidKV's entries of a layer ahead of the window, for `base` on average and n candidates.
int pyramid_base(int base, int beta, int n, const World& u, int model_layer) {
  const auto floored = [](int a, int b) { return static_cast<int>(std::floor(1.0 * a / b)); };
  int low = floored(base, beta), high = 2 * base - low;
  if (high >= n) {
    high = n;
    low = 2 * base - high;
  }
  return high - model_layer * floored(high - low, u.t.model_layers - 1);
}

}  // namespace

void adakv(const World& u, const Moment& m, int model_layer, Verdict& out) {
  const Choice& c = u.policy;
  const int n = m.end(), budget = budget_of(u, c);
  const bool code = c.is("form", "code", "code");
  const int window = std::min(c.count("window", 32), n);
  if (budget <= window) return keep_newest(m, std::min(budget, n), out);
  int base = budget - window;
  if (c.has("pyramid"))
    base = pyramid_base(base, c.count("pyramid", 20), n - window, u, model_layer);
  // The authors' program also acts where all would fit.
  if (code ? base > n - window : n <= budget) return;
  const double alpha = c.real("alpha", 0.2);
  Ballot x = ballot(u, c, m, window);
  if (c.count("skip", 0) > model_layer) {
    for (int h = 0; h < u.heads; ++h) keep_voted(x, m, h, base, out);
    return;
  }
  const Ballot own = x;
  if (c.is("normalize", "true", "false")) {
    for (Values& v : x.votes) {
      Values sorted = v;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      double top = 0, all = 0;
      for (std::size_t e = 0; e < sorted.size(); ++e) {
        all += sorted[e];
        if (e < at(base)) top += sorted[e];
      }
      for (double& s : v) s *= all > 0 ? top / all : 1;
    }
  }
  std::vector<int> counts(at(u.heads), 0);
  bool near = false;
  if (c.is("form", "kvpress", "code")) {
    const int safe = alpha > 0 ? std::max(1, static_cast<int>(alpha * budget)) : 0;
    const int sure = std::max(0, safe - window);
    std::vector<Place> rest;
    for (const Place& p : one_list(x)) {
      if (counts[at(p.head)] < sure) {
        ++counts[at(p.head)];
      } else {
        rest.push_back(p);
      }
    }
    const int left = u.heads * base - std::accumulate(counts.begin(), counts.end(), 0);
    near = near_cut(rest, left);
    for (int i = 0; i < left; ++i) ++counts[at(rest[at(i)].head)];
  } else {
    const std::vector<Place> list = one_list(x);
    near = near_cut(list, u.heads * base);
    for (int i = 0; i < u.heads * base; ++i) ++counts[at(list[at(i)].head)];
    for (int& count : counts) count = half_even(count * (1 - alpha) + std::floor(alpha * base));
  }
  for (int h = 0; h < u.heads; ++h) keep_voted(own, m, h, counts[at(h)], out);
  if (near) std::fill(out.near.begin(), out.near.end(), 1);
}

void dbudgetkv(const World& u, const Moment& m, Verdict& out) {
  const Choice& c = u.policy;
  const int n = m.end(), sinks = std::min(c.count("sinks", 4), n);
  const int rows = std::min(c.count("rows", 1), n);
  const double threshold = c.real("threshold", 0.01);
  if (threshold == 0) return;  // nothing may be lost
  std::vector<Values> a;       // [query heads][n] mean over the rows that see the key
  for (int g = 0; g < u.t.query_heads; ++g) {
    Values sum(at(n), 0.0), seen(at(n), 0.0);
    for (int row = n - rows; row < n; ++row) {
      const Values p = full_attention(u, m.l, g, row);
      for (int j = 0; j <= row; ++j) {
        sum[at(j)] += p[at(j)];
        seen[at(j)] += 1;
      }
    }
    for (int j = 0; j < n; ++j) sum[at(j)] /= seen[at(j)];
    a.push_back(sum);
  }
  Tokens kept;
  bool near = false;
  const auto hangs = [&](double x) { near = near || std::abs(x - threshold) <= 1e-6; };
  if (c.is("norm", "code", "code")) {
    const auto norms = [&](int from) {
      double sum = 0;
      for (const Values& x : a) {
        sum += std::sqrt(squared_norm(x.data() + from, n - from)) / static_cast<double>(a.size());
      }
      return sum;
    };
    int cut = sinks;
    for (int j = sinks; j < n && norms(sinks) > 0; ++j) {
      const double lost = (norms(sinks) - norms(j)) / norms(sinks);
      if (j > sinks) hangs(lost);
      if (lost <= threshold) cut = j;
    }
    kept = range(0, sinks);
    for (int j = cut; j < n; ++j) kept.push_back(j);
  } else {
    const Values x = reduce(a, "mean");
    Tokens order = range(0, sinks);
    for (int j = n - 1; j >= sinks; --j) order.push_back(j);
    const double all = std::sqrt(squared_norm(x.data(), n));
    double square = 0;
    for (const int j : order) {
      kept.push_back(j);
      square += x[at(j)] * x[at(j)];
      const double lost = 1 - std::sqrt(square) / all;
      hangs(lost);
      if (lost < threshold) break;
    }
    std::sort(kept.begin(), kept.end());
  }
  for (Tokens& k : out.kept) k = kept;
  if (near) std::fill(out.near.begin(), out.near.end(), 1);
}

void headkv(const World& u, const Moment& m, int model_layer, Verdict& out) {
  const Choice& c = u.policy;
  const int n = m.end(), budget = budget_of(u, c), window = std::min(c.count("window", 8), n);
  const double temp = c.real("temp", 1), beta = c.real("beta", 1.2);
  // p of every stored head of every layer of the model.
  std::vector<Values> p;
  double sum = 0;
  for (const Values& row : u.tables.gates) {
    Values x(at(u.heads), 0.0);
    const int per_head = static_cast<int>(row.size()) / u.heads;
    for (int g = 0; g < static_cast<int>(row.size()); ++g) {
      x[at(g / per_head)] += std::pow(row[at(g)], temp) / per_head;
    }
    for (const double s : x) sum += s;
    p.push_back(x);
  }
  const int base = budget - window;
  // Python's x // beta: the quotient of what is left when the remainder is taken away.
  const int shared = static_cast<int>(std::round((base - std::fmod(base, beta)) / beta));
  const double all_heads = static_cast<double>(u.tables.gates.size()) * u.heads;
  if (n < budget) return;  // at the budget, too, heads give and take
  if (budget > window) {
    const Ballot x = ballot(u, c, m, window);
    for (int h = 0; h < u.heads; ++h) {
      const double places =
          p[at(model_layer)][at(h)] / sum * (shared * all_heads) + (base - shared);
      keep_voted(x, m, h, half_even(places), out);
      if (std::abs(places - std::floor(places) - 0.5) < 1e-9) out.near[at(h)] = 1;
    }
  } else {
    keep_newest(m, budget, out);
  }
}

std::vector<std::vector<int>> full_heads(const World& u) {
  std::vector<Place> gates;
  for (std::size_t l = 0; l < u.tables.gates.size(); ++l) {
    for (std::size_t h = 0; h < u.tables.gates[l].size(); ++h) {
      gates.push_back({u.tables.gates[l][h], static_cast<int>(l), static_cast<int>(h)});
    }
  }
  std::stable_sort(gates.begin(), gates.end(),
                   [](const Place& a, const Place& b) { return a.score > b.score; });
  const double sparsity = u.policy.real("sparsity", 0.7);
  auto full = static_cast<std::size_t>(static_cast<double>(gates.size()) * (1 - sparsity));
  if (u.policy.is("full", "quantile", "mask")) {
    // Those that lie at or above numpy's quantile of the mask: place s (count - 1), between two of
    // them unless whole. Noise of 1e-6 tells the mask's equal heads apart: here, their gates.
    const double place = sparsity * static_cast<double>(gates.size() - 1);
    full = gates.size() - static_cast<std::size_t>(std::ceil(place));
  }
  std::vector<std::vector<int>> out(at(u.layers), std::vector<int>(at(u.heads), 0));
  for (std::size_t i = 0; i < full; ++i) {
    for (int l = 0; l < u.layers; ++l) {
      if (u.t.layers[at(l)].model_layer == gates[i].token) out[at(l)][at(gates[i].head)] = 1;
    }
  }
  return out;
}

std::vector<int> water_filling(const World& u, int budget, bool& near) {
  const Choice& c = u.policy;
  // Bounds that B heads cannot meet give way.
  const double low = std::min(c.count("sinks", 4) + 4, budget), high = std::max(u.point, budget);
  Values weight;
  for (int l = 0; l < u.layers; ++l) {
    for (int h = 0; h < u.heads; ++h) {
      weight.push_back(
          std::pow(u.tables.gates[at(u.t.layers[at(l)].model_layer)][at(h)], c.real("power", 1)));
    }
  }
  const double total = budget * static_cast<double>(weight.size());
  const auto filled = [&](double level) {
    Values b;
    for (const double w : weight) b.push_back(std::clamp(level * w, low, high));
    return b;
  };
  double from = 0, to = 1e12;
  for (int i = 0; i < 300; ++i) {
    const double level = (from + to) / 2;
    const Values b = filled(level);
    (std::accumulate(b.begin(), b.end(), 0.0) < total ? from : to) = level;
  }
  const Values b = filled(to);
  std::vector<int> out;
  Values remainder;
  for (const double x : b) {
    out.push_back(static_cast<int>(std::floor(x + 1e-9)));
    remainder.push_back(x - out.back());
  }
  for (int missing =
           static_cast<int>(std::lround(total)) - std::accumulate(out.begin(), out.end(), 0);
       missing > 0; --missing) {
    std::size_t next = 0;
    for (std::size_t i = 1; i < out.size(); ++i) {
      if (remainder[i] > remainder[next] + 1e-9) next = i;
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      near = near || (i != next && weight[i] != weight[next] &&
                      std::abs(remainder[i] - remainder[next]) < 1e-7);
    }
    ++out[next];
    remainder[next] = -1;
  }
  return out;
}

int pyramid_count(const World& u, int model_layer, int n, int w) {
  const Choice& c = u.policy;
  const Amount budget = amount_of(c.text("budget", "20%"));
  const double x = budget.kind == Amount::share ? n * share_of(budget) : budget_of(u, c);
  const double beta = c.real("beta", 20);
  const double cap = w + x;
  double low = (cap - w) / beta;
  double high = (cap - w) * 2 - low;
  if (high >= n - w) {
    high = n - w;
    low = (cap - w) * 2 - high;
  }
  if (!(n >= high && high >= low && low >= w)) return std::max(1, half_even(x));
  const int layers = u.t.model_layers;
  const double step = layers > 1 ? (high - low) / (layers - 1) : 0;
  return half_even(high - model_layer * step);
}

}  // namespace kvspan::twin::postfill
