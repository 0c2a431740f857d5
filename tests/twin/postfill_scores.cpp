// SPDX-License-Identifier: Apache-2.0
// How entries are ranked, one function a policy.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

Values knorm(const World& u, const Moment& m, int h, const Tokens& entries) {
  Values out;
  for (const int j : entries) {
    out.push_back(-std::sqrt(squared_norm(key_of(u, m.l, u.kv_head(h), j), u.t.head_dim)));
  }
  return out;
}

Values keydiff(const World& u, const Moment& m, int h, const Tokens& entries) {
  const int d = u.t.head_dim;
  Values anchor(at(d), 0.0);
  for (const int j : entries) {
    const double* k = key_of(u, m.l, u.kv_head(h), j);
    const double norm = std::max(std::sqrt(squared_norm(k, d)), 1e-12);
    for (int i = 0; i < d; ++i) anchor[at(i)] += k[i] / norm / static_cast<double>(entries.size());
  }
  const double length = std::max(std::sqrt(squared_norm(anchor.data(), d)), 1e-8);
  Values out;
  for (const int j : entries) {
    const double* k = key_of(u, m.l, u.kv_head(h), j);
    double dot = 0;
    for (int i = 0; i < d; ++i) dot += k[i] * anchor[at(i)];
    out.push_back(-dot / (length * std::max(std::sqrt(squared_norm(k, d)), 1e-8)));
  }
  return out;
}

// One half of LagKV: the spread over the channels of x within the range of the next partition, then
// softmax over the partition. `vectors` [2 * lag][dim]: the partition and the next one.
Values lag_half(const std::vector<const double*>& vectors, int lag, int dim) {
  Values spread;
  for (int e = 0; e < lag; ++e) {
    Values x;
    for (int i = 0; i < dim; ++i) {
      double low = kInfinity, high = -kInfinity;
      for (int r = lag; r < 2 * lag; ++r) {
        low = std::min(low, vectors[at(r)][i]);
        high = std::max(high, vectors[at(r)][i]);
      }
      x.push_back(high > low ? (vectors[at(e)][i] - low) / (high - low) : 0.0);
    }
    const double centre = mean(x);
    double sum = 0;
    for (const double v : x) sum += (v - centre) * (v - centre);
    spread.push_back(dim > 1 ? std::sqrt(sum / (dim - 1)) : 0.0);
  }
  const double top = *std::max_element(spread.begin(), spread.end());
  double sum = 0;
  for (double& s : spread) sum += (s = std::exp(s - top));
  for (double& s : spread) s /= sum;
  return spread;
}

Values expected_attention(const World& u, const Choice& c, const Moment& m, int h,
                          const Tokens& entries) {
  const Trace& t = u.t;
  const int d = t.head_dim, sinks = c.count("sinks", 4), future = c.count("future", 512);
  const auto [first, last] = readers(t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    std::vector<Values> q;
    for (int row = sinks; row < u.point; ++row) {
      q.push_back(query(t, t.layers[at(m.l)], g, row, -row));
    }
    Values mu(at(d), 0.0);
    for (const Values& x : q) {
      for (int i = 0; i < d; ++i) mu[at(i)] += x[at(i)] / static_cast<double>(q.size());
    }
    Values cov(at(d) * at(d), 0.0);
    for (const Values& x : q) {
      for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
          cov[at(i * d + j)] +=
              (x[at(i)] - mu[at(i)]) * (x[at(j)] - mu[at(j)]) / static_cast<double>(q.size());
        }
      }
    }
    // Columns of the mean rotation: where it takes the unit vectors.
    std::vector<Values> columns;
    for (int i = 0; i < d; ++i) {
      Values column(at(d), 0.0);
      for (int position = u.point; position < u.point + future; ++position) {
        Values unit(at(d), 0.0);
        unit[at(i)] = 1;
        turn(t.rope, d, position, unit);
        for (int j = 0; j < d; ++j) column[at(j)] += unit[at(j)] / future;
      }
      columns.push_back(column);
    }
    Values turned_mu(at(d), 0.0), turned_cov(at(d) * at(d), 0.0);
    for (int i = 0; i < d; ++i) {
      for (int a = 0; a < d; ++a) {
        turned_mu[at(a)] += columns[at(i)][at(a)] * mu[at(i)];
        for (int j = 0; j < d; ++j) {
          for (int b = 0; b < d; ++b) {
            turned_cov[at(a * d + b)] +=
                columns[at(i)][at(a)] * cov[at(i * d + j)] * columns[at(j)][at(b)];
          }
        }
      }
    }
    Values z;
    for (const int j : entries) {
      const double* k = key_of(u, m.l, u.kv_head(h), j);
      double linear = 0, square = 0;
      for (int a = 0; a < d; ++a) {
        linear += turned_mu[at(a)] * k[a];
        for (int b = 0; b < d; ++b) square += k[a] * turned_cov[at(a * d + b)] * k[b];
      }
      const double scale = t.score_scale;
      if (c.is("covariance", "false", "true")) square = 0;
      z.push_back(scale * linear + scale * scale / 2 * square);
    }
    const double top = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (double& x : z) sum += (x = std::exp(x - top));
    for (double& x : z) x /= sum;
    per_head.push_back(z);
  }
  Values out = reduce(per_head, "mean");
  for (std::size_t e = 0; e < out.size(); ++e) {
    out[e] += c.real("epsilon", 0);
    const double* v = value_of(u, m.l, u.kv_head(h), entries[e]);
    if (c.is("vnorm", "true", "true")) out[e] *= std::sqrt(squared_norm(v, t.v_head_dim));
  }
  return out;
}

Values cur(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const int window = c.count("window", 16);
  const int n = static_cast<int>(entries.size());
  const auto shares = [&](bool keys) {
    Values x;
    for (const int j : entries) {
      x.push_back(keys ? squared_norm(key_of(u, m.l, u.kv_head(h), j), u.t.head_dim)
                       : squared_norm(value_of(u, m.l, u.kv_head(h), j), u.t.v_head_dim));
    }
    Values out;
    for (int i = 0; i < n; ++i) {
      double sum = 0;
      const int first = i / window * window;
      for (int j = first; j < std::min(first + window, n); ++j) sum += x[at(j)];
      out.push_back(sum > 0 ? x[at(i)] / sum : 0.0);
    }
    return out;
  };
  const std::string leverage = c.text("leverage", "kv_product");
  const Values k = shares(true), v = shares(false);
  Values out;
  for (int i = 0; i < n; ++i) {
    double x = k[at(i)] * v[at(i)];
    if (leverage == "key") x = k[at(i)];
    if (leverage == "value") x = v[at(i)];
    if (leverage == "kv_avg") x = (k[at(i)] + v[at(i)]) / 2;
    out.push_back(entries[at(i)] < c.count("sinks", 4) ? 1e6 : x);
  }
  return out;
}

Values observed_attention(const World& u, const Moment& m, int h, const Tokens& entries) {
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x;
    for (const int j : entries) {
      double sum = 0;
      for (int row = j; row < m.end(); ++row) sum += full_attention(u, m.l, g, row)[at(j)];
      x.push_back(sum / (m.end() - j));
    }
    per_head.push_back(x);
  }
  return reduce(per_head, "mean");
}

// Mean attention of the decode rows.
Values judgeq(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  const auto [first, last] = readers(u.t, u.heads, h);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x(entries.size(), 0.0);
    for (int row = u.prompt; row < u.t.tokens; ++row) {
      const Values p = full_attention(u, m.l, g, row);
      for (std::size_t e = 0; e < entries.size(); ++e) {
        x[e] += p[at(entries[e])] / (u.t.tokens - u.prompt);
      }
    }
    per_head.push_back(x);
  }
  return pool(reduce(per_head, c.text("group", "mean")), c.count("pool", 1), true);
}

// Largest mean attention of a future block of rows, over the block and the group.
Values golden(const World& u, int interval, const Moment& m, int h, const Tokens& entries) {
  const auto [first, last] = readers(u.t, u.heads, h);
  Values out(entries.size(), 0.0);
  // A block is the rows between two cuts, the next of which is due by absolute length; it counts as
  // a whole interval though it begins or ends early.
  int next = 0;
  for (int begin = m.end(); begin < u.t.tokens; begin = next) {
    next = (begin - 1) / interval * interval + interval + 1;
    Values sum(entries.size(), 0.0);
    for (int row = begin; row < std::min(next, u.t.tokens); ++row) {
      for (int g = first; g < last; ++g) {
        const Values p = full_attention(u, m.l, g, row);
        for (std::size_t e = 0; e < entries.size(); ++e) sum[e] += p[at(entries[e])];
      }
    }
    for (std::size_t e = 0; e < entries.size(); ++e) {
      out[e] = std::max(out[e], sum[e] / (interval * u.group()));
    }
  }
  return out;
}

}  // namespace

Values votes(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries,
             int window) {
  const Tokens& all = m.resident[at(h)];
  const auto [first, last] = readers(u.t, u.heads, h);
  const bool max = c.is("pool", "max", "max");
  const bool late = c.is("order", "pool_then_group", "group_then_pool");
  const int kernel = c.count("kernel", 7);
  std::vector<Values> per_head;
  for (int g = first; g < last; ++g) {
    Values x(entries.size(), 0.0);
    for (int row = std::max(0, m.end() - window); row < m.end(); ++row) {
      const Values p = attention(u, m.l, g, row, all);
      for (std::size_t e = 0, i = 0; e < entries.size(); ++e) {
        while (all[i] != entries[e]) ++i;
        x[e] += p[i];
      }
    }
    per_head.push_back(late ? pool(x, kernel, max) : x);
  }
  const Values out = reduce(per_head, c.text("group", "mean"));
  return late ? out : pool(out, kernel, max);
}

Tokens lagkv(const World& u, const Choice& c, int l, int h, const Tokens& all, int budget,
             bool& near) {
  const int n = static_cast<int>(all.size());
  if (n <= budget) return all;
  const int sinks = c.count("sinks", 4), lag = c.count("lag", 128);
  const bool cross = c.is("cross", "true", "false");
  Values score(at(n), 0.0);
  std::vector<std::pair<Tokens, Values>> partitions;  // places, and what their ranks rest on
  const bool partitioned = n >= sinks + 2 * lag;
  for (int i = 0; i < n; ++i) {  // sinks, then the newest
    score[at(i)] = i < sinks ? 1e6 : (partitioned ? kSafe : 0) + i;
  }
  if (partitioned) {
    const int parts = (n - sinks) / lag;
    for (int p = 0; p + 1 < parts; ++p) {
      const int first = sinks + p * lag;
      std::vector<const double*> k, v;
      for (int i = first; i < first + 2 * lag; ++i) {
        k.push_back(key_of(u, l, u.kv_head(h), all[at(i)]));
        v.push_back(value_of(u, l, u.kv_head(h), all[at(i)]));
      }
      const Values from_k = lag_half(k, lag, u.t.head_dim);
      const Values from_v = lag_half(v, lag, u.t.v_head_dim);
      Values both;
      for (int e = 0; e < lag; ++e) both.push_back((from_k[at(e)] + from_v[at(e)]) / 2);
      for (int e = 0; e < lag; ++e) {
        int below = 0;  // entries of the partition that rank lower; the lower index wins ties
        for (int o = 0; o < lag; ++o) {
          const auto ours = static_cast<float>(both[at(e)]);
          const auto theirs = static_cast<float>(both[at(o)]);
          below += theirs < ours || (theirs == ours && o > e);
        }
        score[at(first + e)] = cross ? both[at(e)] : static_cast<double>(below) / lag;
      }
      partitions.emplace_back(range(first, first + lag), both);
    }
  }
  const std::vector<std::size_t> gone = drop(score, budget, near);
  std::vector<char> stays(all.size(), 1);
  for (const std::size_t e : gone) stays[e] = 0;
  for (const auto& [places, both] : partitions) {
    for (std::size_t a = 0; a < places.size(); ++a) {
      for (std::size_t b = 0; b < places.size(); ++b) {
        const bool split = stays[at(places[a])] != 0 && stays[at(places[b])] == 0;
        near = near || (split && near_tie(both[a], both[b]));
      }
    }
  }
  return laid(all, score, stays, near);
}

Tokens laid(const Tokens& places, Values score, const std::vector<char>& stays, bool& near) {
  std::vector<std::size_t> order;
  for (std::size_t e = 0; e < places.size(); ++e) {
    if (stays[e] != 0) order.push_back(e);
    score[e] = std::min(score[e], kSafe);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return static_cast<float>(score[a]) > static_cast<float>(score[b]);
  });
  Tokens out;
  for (std::size_t i = 0; i < order.size(); ++i) {
    out.push_back(places[order[i]]);
    near = near || (i > 0 && near_tie(score[order[i - 1]], score[order[i]]));
  }
  return out;
}

Values score_by(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  if (c.name == "knorm") return knorm(u, m, h, entries);
  if (c.name == "keydiff") return keydiff(u, m, h, entries);
  if (c.name == "snapkv") return votes(u, c, m, h, entries, c.count("window", 32));
  if (c.name == "expected_attention") return expected_attention(u, c, m, h, entries);
  if (c.name == "cur") return cur(u, c, m, h, entries);
  if (c.name == "observed_attention") return observed_attention(u, m, h, entries);
  if (c.name == "judgeq") return judgeq(u, c, m, h, entries);
  if (c.name == "triattention") return triattention(u, m, h, entries);
  if (c.name == "lookahead") return lookahead(u, c, m, h, entries);
  if (c.name == "finch") return finch(u, c, m, h, entries);
  if (c.name == "trimkv") return trimkv(u, m, h, entries);
  if (c.name == "qfilter") return qfilter(u, m, h, entries);
  if (c.name == "cap") return cap(u, c, m, h, entries);
  if (c.name == "compactor" || c.name == "leverage" || c.name == "noncausal")
    return compactor(u, c, m, h, entries);
  if (c.name == "foresightkv") return golden(u, c.count("interval", 128), m, h, entries);
  throw std::invalid_argument("no scores of " + c.name);
}

Safe safe_of(const World& u, const Choice& c) {
  if (c.name == "snapkv") return {0, c.count("window", 32)};
  if (c.name == "expected_attention" || c.name == "cap") return {c.count("sinks", 4), 0};
  if (c.name == "lookahead") return {0, c.count("window", 8)};
  if (c.name == "finch") return {0, question_rows(u, c)};
  if (c.name == "trimkv") return {0, c.count("recent", 0)};
  if (c.name == "compactor") return {c.count("sinks", 8), c.count("recent", 4)};
  if (c.name == "triattention" && c.is("prompt", "stay", "compete"))
    return {c.count("prompt_tokens", 0), 0};
  if (c.name == "judgeq") return {0, c.count("window", 0)};
  if (c.name == "foresightkv") return {0, c.count("interval", 128)};
  return {};
}

}  // namespace kvspan::twin::postfill
