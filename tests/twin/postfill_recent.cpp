// SPDX-License-Identifier: Apache-2.0
// Twins of methods of 2025 and 2026 that rank entries, as the authors' programs or kvpress do.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numeric>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

using Complex = std::complex<double>;

// Pairs of a vector of the rotary embedding.
std::vector<Complex> pairs_of(const Rope& rope, const Values& x) {
  std::vector<Complex> out;
  for (int f = 0; f < rope.dim / 2; ++f) {
    out.emplace_back(rope.interleaved ? x[at(2 * f)] : x[at(f)],
                     rope.interleaved ? x[at(2 * f + 1)] : x[at(f + rope.dim / 2)]);
  }
  return out;
}

double frequency(const Rope& rope, int f) {
  return std::pow(rope.theta, -2.0 * f / static_cast<double>(rope.dim));
}

// Without rope_* fields nothing is rotated.
Rope rope_of(const Trace& t) {
  Rope out = t.rope;
  if (!out.present) out.dim = 0;
  return out;
}

}  // namespace

// Keys are turned back to where they were, and every offset has its cosine.
Values triattention(const World& u, const Moment& m, int h, const Tokens& entries) {
  const Trace& t = u.t;
  const int d = t.head_dim;
  const Rope rope = rope_of(t);
  const auto [first, last] = readers(t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    std::vector<Complex> centre_of(at(rope.dim / 2));
    Values magnitude(centre_of.size(), 0.0), rest(at(d), 0.0);
    for (int row = 0; row < u.point; ++row) {
      const Values q = query(t, t.layers[at(m.l)], g, row, -row);
      const std::vector<Complex> z = pairs_of(rope, q);
      for (std::size_t f = 0; f < z.size(); ++f) {
        centre_of[f] += z[f] / static_cast<double>(u.point);
        magnitude[f] += std::abs(z[f]) / u.point;
      }
      for (int i = rope.dim; i < d; ++i) rest[at(i)] += q[at(i)] / u.point;
    }
    Values score;
    for (const int j : entries) {
      const double* k = key_of(u, m.l, u.kv_head(h), j);
      Values x(k, k + d);
      turn(rope, d, -j, x);
      const std::vector<Complex> z = pairs_of(rope, x);
      double sum = 0;
      int offsets = 0;
      for (int offset = 1; offset <= 65536; offset *= 2, ++offsets) {
        for (std::size_t f = 0; f < z.size(); ++f) {
          const double phase = std::arg(centre_of[f] * std::conj(z[f]));
          sum += std::abs(centre_of[f]) * std::abs(z[f]) *
                 std::cos((m.end() - j + offset) * frequency(rope, static_cast<int>(f)) + phase);
        }
      }
      sum /= offsets;
      for (std::size_t f = 0; f < z.size(); ++f)
        sum += (magnitude[f] - std::abs(centre_of[f])) * std::abs(z[f]);
      for (int i = rope.dim; i < d; ++i) sum += rest[at(i)] * x[at(i)];
      score.push_back(std::round(sum * 1e10) / 1e10);  // keys that are equal in the cache tie
    }
    const double centre = mean(score);
    double square = 0;
    for (const double s : score)
      square += (s - centre) * (s - centre) / static_cast<double>(score.size());
    for (double& s : score) s = (s - centre) / std::max(std::sqrt(square), 1e-6);
    per_head.push_back(score);
  }
  return reduce(per_head, "max");
}

// SnapKVCluster.update_kv_LAQ: rows of the window and of the answer, masked as the prompt's last.
Values lookahead(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const int n = u.point, window = std::min(c.count("window", 8), n);
  const int ahead = std::min(c.count("ahead", 8), u.t.tokens - n), rows = window + ahead;
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values votes(entries.size(), 0.0);
    for (int i = 0; i < rows; ++i) {
      const int row = n - window + i;
      const Values q = query(u.t, u.t.layers[at(m.l)], g, row, 0);
      Values p;
      for (int j = 0; j < n; ++j) {
        const double* k = key_of(u, m.l, u.kv_head(h), j);
        double z = 0;
        for (int d = 0; d < u.t.head_dim; ++d) z += q[at(d)] * k[d] * u.t.score_scale;
        const bool hidden = c.is("mask", "code", "code") ? j > n - rows + i : j > row;
        p.push_back(hidden ? -kInfinity : z);
      }
      const double top = *std::max_element(p.begin(), p.end());
      if (std::isinf(top)) continue;
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - top);
      for (std::size_t e = 0; e < entries.size(); ++e) votes[e] += p[at(entries[e])] / sum;
    }
    per_head.push_back(pool(votes, c.count("kernel", 7), true));
  }
  return reduce(per_head, c.text("group", "mean"));
}

namespace {

// a x = b, by elimination.
Values solved(std::vector<Values> a, Values b) {
  const std::size_t n = b.size();
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t pivot = i;
    for (std::size_t r = i; r < n; ++r)
      if (std::abs(a[r][i]) > std::abs(a[pivot][i])) pivot = r;
    std::swap(a[i], a[pivot]);
    std::swap(b[i], b[pivot]);
    for (std::size_t r = 0; r < n; ++r) {
      if (r == i) continue;
      const double factor = a[r][i] / a[i][i];
      for (std::size_t c = i; c < n; ++c) a[r][c] -= factor * a[i][c];
      b[r] -= factor * b[i];
    }
  }
  for (std::size_t i = 0; i < n; ++i) b[i] /= a[i][i];
  return b;
}

double dot(const Values& a, const Values& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// x' (sum w x x' + diagonal)^-1 x of every x.
Values quadratic(const std::vector<Values>& xs, const Values& weight, double diagonal) {
  const std::size_t n = xs[0].size();
  std::vector<Values> a(n, Values(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) a[i][i] = diagonal;
  for (std::size_t e = 0; e < xs.size(); ++e) {
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) a[i][j] += weight[e] * xs[e][i] * xs[e][j];
  }
  Values out;
  for (const Values& x : xs) out.push_back(dot(x, solved(a, x)));
  return out;
}

// Keys before rotation, centred. No sketch.
Values leverage_scores(const World& u, int l, int h, const Tokens& entries) {
  const int d = u.t.head_dim;
  std::vector<Values> keys;
  Values centre(at(d), 0.0);
  for (const int j : entries) {
    const double* k = key_of(u, l, u.kv_head(h), j);
    keys.emplace_back(k, k + d);
    turn(u.t.rope, d, -j, keys.back());
    for (int i = 0; i < d; ++i)
      centre[at(i)] += keys.back()[at(i)] / static_cast<double>(entries.size());
  }
  for (Values& k : keys)
    for (int i = 0; i < d; ++i) k[at(i)] -= centre[at(i)];
  return quadratic(keys, Values(keys.size(), 1.0), 0.01);
}

// Tiles of `size` places, filled up with zeros at the end; whoever is filled up has logits of 0.
Values noncausal_scores(const World& u, int l, int h, const Tokens& entries, int size) {
  const int n = static_cast<int>(entries.size()), d = u.t.head_dim;
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values sums(at(n), 0.0);
    for (int tile = 0; tile < n; tile += size) {
      for (int row = tile; row < tile + size; ++row) {
        Values z(at(size), 0.0);
        for (int e = 0; e < size && row < n; ++e) {
          if (tile + e >= n) continue;
          const Values q = query(u.t, u.t.layers[at(l)], g, entries[at(row)], 0);
          const double* k = key_of(u, l, u.kv_head(h), entries[at(tile + e)]);
          for (int i = 0; i < d; ++i) z[at(e)] += q[at(i)] * k[i];
        }
        const double top = *std::max_element(z.begin(), z.end());
        double sum = 0;
        for (double& x : z) sum += x = std::exp(x - top);
        for (int e = 0; e < size && tile + e < n; ++e) sums[at(tile + e)] += z[at(e)] / sum;
      }
    }
    per_head.push_back(sums);
  }
  Values out = reduce(per_head, "mean");
  for (std::size_t e = 0; e < out.size(); ++e)
    out[e] *= std::sqrt(squared_norm(value_of(u, l, u.kv_head(h), entries[e]), u.t.v_head_dim));
  return pool(out, 3, false);
}

// z-scores over all heads of the layer.
std::vector<Values> standardised(std::vector<Values> x) {
  Values all;
  for (const Values& head : x) all.insert(all.end(), head.begin(), head.end());
  const double centre = mean(all);
  double square = 0;
  for (const double v : all) square += (v - centre) * (v - centre);
  const double deviation = std::sqrt(square / std::max(1.0, static_cast<double>(all.size()) - 1));
  for (Values& head : x)
    for (double& v : head) v = (v - centre) / std::max(deviation, 1e-6);
  return x;
}

}  // namespace

Values compactor(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const bool attends = c.name != "leverage", lies = c.name != "noncausal";
  std::vector<Values> attention, leverage;
  for (int g = 0; g < u.heads; ++g) {
    if (attends) attention.push_back(noncausal_scores(u, m.l, g, entries, c.count("chunk", 256)));
    if (lies) leverage.push_back(leverage_scores(u, m.l, g, entries));
  }
  Values out(entries.size(), 0.0);
  if (attends) out = standardised(attention)[at(h)];
  if (!lies) return out;
  const Amount budget = amount_of(c.text("budget", "20%"));
  double blending =
      1.0 - (budget.kind == Amount::share ? share_of(budget)
                                          : static_cast<double>(budget_of(u, c)) / u.point);
  blending = c.real("blending", std::max(0.0, blending));
  if (!attends) blending = 1;
  const Values own = standardised(leverage)[at(h)];
  for (std::size_t e = 0; e < out.size(); ++e) out[e] += blending * own[e];
  return out;
}

Values cap(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const Trace& t = u.t;
  const int d = t.head_dim, sinks = c.count("sinks", 4), future = c.count("future", 512);
  const auto [first, last] = readers(t, u.heads, h);
  std::vector<Values> per_head, values;
  for (const int j : entries) {
    const double* v = value_of(u, m.l, u.kv_head(h), j);
    values.emplace_back(v, v + t.v_head_dim);
  }
  for (int g = first; g < last; ++g) {
    Values mu(at(d), 0.0), anchor(at(d), 0.0);
    for (int row = sinks; row < u.point; ++row) {
      const Values q = query(t, t.layers[at(m.l)], g, row, -row);
      for (int i = 0; i < d; ++i) mu[at(i)] += q[at(i)] / (u.point - sinks);
    }
    for (int position = u.point; position < u.point + future; ++position) {
      Values x = mu;
      turn(t.rope, d, position, x);
      for (int i = 0; i < d; ++i) anchor[at(i)] += x[at(i)] / future;
    }
    Values weight;
    for (const int j : entries) {
      const double* k = key_of(u, m.l, u.kv_head(h), j);
      const Values x(k, k + d);
      weight.push_back(dot(x, anchor) / (std::max(std::sqrt(dot(x, x)), 1e-12) *
                                         std::max(std::sqrt(dot(anchor, anchor)), 1e-12)));
    }
    const double top = *std::max_element(weight.begin(), weight.end());
    Values in_capacity;
    for (double& w : weight) {
      w = std::exp(c.real("tau", 5) * (w - top));
      in_capacity.push_back(w + 1e-6);
    }
    Values score = quadratic(values, in_capacity, 1);
    for (std::size_t e = 0; e < score.size(); ++e) score[e] *= weight[e];
    per_head.push_back(score);
  }
  return reduce(per_head, "mean");
}

// The direction of the largest singular value, by repeated squaring of Q'Q.
Values qfilter(const World& u, const Moment& m, int h, const Tokens& entries) {
  const int d = u.t.head_dim;
  const auto [first, last] = readers(u.t, u.heads, h);
  Values filter(at(d), 0.0);
  for (int g = first; g < last; ++g) {
    std::vector<Values> q, a(at(d), Values(at(d), 0.0));
    for (int row = 0; row < u.point; ++row) {
      q.push_back(query(u.t, u.t.layers[at(m.l)], g, row, 0));
      for (int i = 0; i < d; ++i)
        for (int j = 0; j < d; ++j) a[at(i)][at(j)] += q.back()[at(i)] * q.back()[at(j)];
    }
    for (int round = 0; round < 40; ++round) {
      double most = 0;
      for (const Values& row : a)
        for (const double x : row) most = std::max(most, std::abs(x));
      std::vector<Values> next(at(d), Values(at(d), 0.0));
      for (int i = 0; i < d; ++i)
        for (int j = 0; j < d; ++j)
          for (int k = 0; k < d; ++k)
            next[at(i)][at(j)] += a[at(i)][at(k)] / most * (a[at(k)][at(j)] / most);
      a = next;
    }
    std::size_t widest = 0;  // the longest column lies along the direction
    for (std::size_t i = 0; i < a.size(); ++i)
      if (a[i][i] > a[widest][widest]) widest = i;
    Values v = a[widest];
    const double length = std::sqrt(dot(v, v));
    int more = 0;
    double sum = 0;
    for (const Values& row : q) {
      const double product = dot(row, v);
      more += product > 0 ? 1 : (product < 0 ? -1 : 0);
      sum += product;
    }
    const double sign = more > 0 || (more == 0 && sum >= 0) ? 1 : -1;
    for (int i = 0; i < d; ++i) filter[at(i)] += sign * v[at(i)] / length / (last - first);
  }
  Values out;
  for (const int j : entries) {
    const double* k = key_of(u, m.l, u.kv_head(h), j);
    out.push_back(dot(filter, Values(k, k + d)));
  }
  return out;
}

}  // namespace kvspan::twin::postfill
