// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_postfill.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>

#include "tests/twin/parts.h"

namespace kvspan::twin::postfill {
namespace {

constexpr int kBytes = 2;  // of an element

// A policy's name and parameters.
struct Choice {
  std::string name;
  const Parameters& all;
  std::string prefix;  // "inner." inside a wrapper

  [[nodiscard]] bool has(const std::string& key) const { return all.count(prefix + key) > 0; }
  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback) const {
    return has(key) ? all.at(prefix + key) : fallback;
  }
  [[nodiscard]] double real(const std::string& key, double fallback) const {
    return has(key) ? std::stod(all.at(prefix + key)) : fallback;
  }
  [[nodiscard]] int count(const std::string& key, int fallback) const {
    return has(key) ? std::stoi(all.at(prefix + key)) : fallback;
  }
  [[nodiscard]] bool is(const std::string& key, const std::string& word,
                        const std::string& fallback) const {
    return text(key, fallback) == word;
  }
  [[nodiscard]] Choice inner() const { return {text("inner", ""), all, prefix + "inner."}; }
};

// All that is fixed before the replay.
struct World {
  const Trace& t;
  Choice policy;
  const Tables& tables;
  int layers = 0;  // stored layers
  int prompt = 0;  // n
  int point = 0;   // n': the prompt-end rules act after the pass that ends here
  int heads = 0;   // stored heads of a layer
  std::vector<Pass> passes;
  std::vector<char> admitted{};  // [layers, heads, tokens] write_gate

  [[nodiscard]] std::size_t flat(int l, int h, int token) const {
    return (at(l) * at(heads) + at(h)) * at(t.tokens) + at(token);
  }
  [[nodiscard]] long long entry_bytes() const { return 1LL * (t.head_dim + t.v_head_dim) * kBytes; }
  [[nodiscard]] int group() const { return t.query_heads / heads; }
  [[nodiscard]] int kv_head(int h) const { return h / (heads / t.kv_heads); }
};

using Tokens = std::vector<int>;
using Values = std::vector<double>;

// The end of one pass of one layer.
struct Moment {
  int l = 0;
  Pass pass;
  std::vector<Tokens> resident;  // [heads] ascending, newborns included
  [[nodiscard]] int end() const { return pass.end; }
};

// State that outlives a pass.
struct Memory {
  std::vector<char> lazy;            // [layers] simlayerkv
  std::map<int, Tokens> leader_set;  // chunkkv: what a block of layers keeps
};

// What stays in every head, and which heads hung on a near tie.
struct Verdict {
  std::vector<Tokens> kept;
  std::vector<char> near;
  explicit Verdict(const Moment& m) : kept(m.resident), near(m.resident.size(), 0) {}
};

Tokens range(int begin, int end) {
  Tokens out;
  for (int i = begin; i < end; ++i) out.push_back(i);
  return out;
}

const double* key_of(const World& u, int l, int kv_head, int token) {
  return u.t.layers[at(l)].k.data() +
         (at(token) * at(u.t.kv_heads) + at(kv_head)) * at(u.t.head_dim);
}

const double* value_of(const World& u, int l, int kv_head, int token) {
  return u.t.layers[at(l)].v.data() +
         (at(token) * at(u.t.kv_heads) + at(kv_head)) * at(u.t.v_head_dim);
}

double squared_norm(const double* x, int dim) {
  double sum = 0;
  for (int i = 0; i < dim; ++i) sum += x[i] * x[i];
  return sum;
}

// p' of one row over `keys`.
Values attention(const World& u, int l, int g, int row, const Tokens& keys) {
  const Layer& layer = u.t.layers[at(l)];
  return softmax(u.t, layer, g, query(u.t, layer, g, row, 0), row, keys);
}

Values full_attention(const World& u, int l, int g, int row) {
  return attention(u, l, g, row, range(0, row + 1));
}

// ---- amounts --------------------------------------------------------------------------------

Amount amount_of(const std::string& text) {
  Amount a;
  const std::string number = text.substr(0, text.size() - 1);
  if (text.back() == '%') {
    a.kind = Amount::share;
    a.decimal = number;
  } else if (text.back() == 'B') {
    a.kind = Amount::bytes;
    a.value = std::stod(number);
  } else {
    a.value = std::stod(text);
  }
  return a;
}

int budget_of(const World& u, const Choice& c) {
  return budget_tokens(amount_of(c.text("budget", "20%")), u.point,
                       u.layers * u.heads * u.entry_bytes());
}

// The share that stays as the authors' codes have it: 1 - s, s the double nearest to what goes.
double share_of(const Amount& a) {
  const Decimal percent = parse_decimal(a.decimal);
  const auto all = static_cast<double>(100 * percent.scale);
  return 1.0 - static_cast<double>(100 * percent.scale - percent.digits) / all;
}

int half_even(double x) { return static_cast<int>(std::nearbyint(x)); }

// ---- picking --------------------------------------------------------------------------------

// Indices of all but the best `keep`: compared in fp32, so that sums that tie on paper tie here; lower
// indices win ties. Near ties are judged in double.
std::vector<std::size_t> drop(const Values& scores, int keep, bool& near) {
  Values rounded;
  for (const double s : scores) rounded.push_back(static_cast<double>(static_cast<float>(s)));
  bool exact_near = false;
  const std::vector<std::size_t> out = losers(rounded, keep, exact_near);
  std::vector<char> leaves(scores.size(), 0);
  for (const std::size_t e : out) leaves[e] = 1;
  double worst_kept = kInfinity, best_lost = -kInfinity;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    if (leaves[e] != 0) {
      best_lost = std::max(best_lost, scores[e]);
    } else {
      worst_kept = std::min(worst_kept, scores[e]);
    }
  }
  if (std::isinf(worst_kept) || std::isinf(best_lost)) return out;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    near = near || near_tie(scores[e], leaves[e] != 0 ? worst_kept : best_lost);
  }
  return out;
}

// Entries of `from` that are not in `gone`.
Tokens without(const Tokens& from, const Tokens& gone) {
  Tokens out;
  for (const int j : from) {
    if (std::find(gone.begin(), gone.end(), j) == gone.end()) out.push_back(j);
  }
  return out;
}

using ScoreOf = std::function<Values(const Tokens& candidates)>;

// Entries that may not leave: the first `sinks`, the newest `recent`.
struct Safe {
  int sinks = 0, recent = 0;
};

Tokens candidates_of(const Tokens& resident, Safe safe, int end) {
  Tokens out;
  for (const int j : resident) {
    if (j >= safe.sinks && j < end - safe.recent) out.push_back(j);
  }
  return out;
}

// The best `budget` entries, what is safe counted inside; if that is more, the newest of it.
Tokens best(const Tokens& resident, Safe safe, int end, int budget, const ScoreOf& score,
            bool& near) {
  if (static_cast<int>(resident.size()) <= budget) return resident;
  const Tokens candidates = candidates_of(resident, safe, end);
  const Tokens kept = without(resident, candidates);
  if (static_cast<int>(kept.size()) >= budget) return {kept.end() - budget, kept.end()};
  Tokens gone;
  for (const std::size_t e :
       drop(score(candidates), budget - static_cast<int>(kept.size()), near)) {
    gone.push_back(candidates[e]);
  }
  return without(resident, gone);
}

// ---- scores ---------------------------------------------------------------------------------

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

// SnapKV's votes of the last rows before the end of the pass.
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

// What stays of one sequence; ranks inside a partition may hang on near ties.
Tokens lagkv(const World& u, const Choice& c, const Moment& m, int h, int budget, bool& near) {
  const Tokens& all = m.resident[at(h)];
  const int n = static_cast<int>(all.size());
  if (n <= budget) return all;
  const int sinks = c.count("sinks", 4), lag = c.count("lag", 128);
  const bool cross = c.is("cross", "true", "false");
  Values score(at(n), 0.0);
  std::vector<std::pair<Tokens, Values>> partitions;  // places, and what their ranks rest on
  for (int i = 0; i < n; ++i) score[at(i)] = i < sinks ? 1e6 : 1e3 + i;  // sinks, then the newest
  if (n >= sinks + 2 * lag) {
    const int parts = (n - sinks) / lag;
    for (int p = 0; p + 1 < parts; ++p) {
      const int first = sinks + p * lag;
      std::vector<const double*> k, v;
      for (int i = first; i < first + 2 * lag; ++i) {
        k.push_back(key_of(u, m.l, u.kv_head(h), all[at(i)]));
        v.push_back(value_of(u, m.l, u.kv_head(h), all[at(i)]));
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
  Tokens kept = all;
  for (const std::size_t e : gone) kept[e] = -1;
  for (const auto& [places, both] : partitions) {
    for (std::size_t a = 0; a < places.size(); ++a) {
      for (std::size_t b = 0; b < places.size(); ++b) {
        const bool split = kept[at(places[a])] >= 0 && kept[at(places[b])] < 0;
        near = near || (split && near_tie(both[a], both[b]));
      }
    }
  }
  kept.erase(std::remove(kept.begin(), kept.end(), -1), kept.end());
  return kept;
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
  // Blocks are counted from the eviction point; one that has begun is no future block.
  const int begun = (m.end() - u.point + interval - 1) / interval;
  for (int begin = u.point + begun * interval; begin < u.t.tokens; begin += interval) {
    Values sum(entries.size(), 0.0);
    for (int row = begin; row < std::min(begin + interval, u.t.tokens); ++row) {
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

// Scores of one head by the policy's own rule, over the given candidates.
Values score_by(const World& u, const Choice& c, const Moment& m, int h, const Tokens& entries) {
  if (c.name == "knorm") return knorm(u, m, h, entries);
  if (c.name == "keydiff") return keydiff(u, m, h, entries);
  if (c.name == "snapkv") return votes(u, c, m, h, entries, c.count("window", 32));
  if (c.name == "expected_attention") return expected_attention(u, c, m, h, entries);
  if (c.name == "cur") return cur(u, c, m, h, entries);
  if (c.name == "observed_attention") return observed_attention(u, m, h, entries);
  if (c.name == "judgeq") return judgeq(u, c, m, h, entries);
  if (c.name == "foresightkv") return golden(u, c.count("interval", 128), m, h, entries);
  throw std::invalid_argument("no scores of " + c.name);
}

Safe safe_of(const Choice& c) {
  if (c.name == "snapkv") return {0, c.count("window", 32)};
  if (c.name == "expected_attention") return {c.count("sinks", 4), 0};
  if (c.name == "judgeq") return {0, c.count("window", 0)};
  if (c.name == "foresightkv") return {0, c.count("interval", 128)};
  return {};
}

// ---- one function per policy: what stays ------------------------------------------------------

// Top-B per head.
void plain(const World& u, const Choice& c, const Moment& m, int budget, Verdict& out) {
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    const auto score = [&](const Tokens& entries) { return score_by(u, c, m, h, entries); };
    out.kept[at(h)] = c.name == "lagkv"
                          ? lagkv(u, c, m, h, budget, near)
                          : best(m.resident[at(h)], safe_of(c), m.end(), budget, score, near);
    out.near[at(h)] = near ? 1 : 0;
  }
}

void simlayerkv(const World& u, const Moment& m, Memory& memory, Verdict& out) {
  const Choice& c = u.policy;
  const int sinks = c.count("sinks", 4), recent = c.count("recent", 1024);
  const int last = c.count("last", 1), b = m.end();
  if (b == u.point && b > sinks + recent + last) {
    double sum = 0;
    for (int g = 0; g < u.t.query_heads; ++g) {
      for (int row = b - last; row < b; ++row) {
        const Values p = full_attention(u, m.l, g, row);
        for (int j = 0; j < b - last; ++j) {
          if (j < sinks || j >= b - last - recent) sum += p[at(j)] / (last * u.t.query_heads);
        }
      }
    }
    const double threshold = c.real("threshold", 0.9);
    memory.lazy[at(m.l)] = sum > threshold ? 1 : 0;
    if (near_tie(sum, threshold)) std::fill(out.near.begin(), out.near.end(), 1);
  }
  const bool again = b > u.point && c.is("decode", "stream", "stream");
  if (memory.lazy[at(m.l)] == 0 || (b != u.point && !again)) return;
  for (Tokens& kept : out.kept) {
    kept = without(kept, candidates_of(kept, {sinks, recent - last}, b));
  }
}

// Votes of every head of the layer over the entries before the window.
struct Ballot {
  Tokens candidates;
  std::vector<Values> votes;  // [heads]
};
Ballot ballot(const World& u, const Choice& c, const Moment& m, int window) {
  Ballot out;
  out.candidates = range(0, m.end() - window);
  for (int h = 0; h < u.heads; ++h) {
    out.votes.push_back(votes(u, c, m, h, out.candidates, window));
  }
  return out;
}

// The best `top` candidates of a head, and the window.
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

void adakv(const World& u, const Moment& m, int model_layer, Verdict& out) {
  const Choice& c = u.policy;
  const int n = m.end(), budget = budget_of(u, c);
  if (n <= budget) return;
  const int window = std::min(c.count("window", 32), n);
  if (budget <= window) return keep_newest(m, budget, out);
  const int base = budget - window;
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

// One set for all heads: the best chunks of `length`, by sum or mean; `window` entries at the end are
// added (paper), or rank above all (kvpress).
Tokens chunk_set(const World& u, const Moment& m, bool& near) {
  const Choice& c = u.policy;
  const int n = m.end(), budget = budget_of(u, c);
  const bool paper = c.is("preset", "paper", "paper");
  const int length = c.count("length", paper ? 10 : 20);
  const int window = std::min(c.count("window", paper ? 8 : 64), n);
  if (n <= budget) return range(0, n);
  Values token(at(n), 0.0);
  if (paper) {
    for (int g = 0; g < u.t.query_heads; ++g) {
      for (int row = n - window; row < n; ++row) {
        const Values p = full_attention(u, m.l, g, row);
        for (int j = 0; j < n - window && j <= row; ++j) token[at(j)] += p[at(j)];
      }
    }
  } else {
    const Parameters none{{"kernel", "5"}, {"pool", "avg"}};
    const Ballot x = ballot(u, {"snapkv", none, ""}, m, window);
    double top = 0;
    for (const Values& v : x.votes) {
      for (const double s : v) top = std::max(top, s / window);
    }
    for (int h = 0; h < u.heads; ++h) {
      for (int j = 0; j < n; ++j) {
        token[at(j)] += j < n - window ? x.votes[at(h)][at(j)] / window : top + 1;
      }
    }
  }
  const int end = paper ? n - window : n;
  Values chunks;
  for (int a = 0; a < end; a += length) {
    const int b = std::min(a + length, end);
    double sum = 0;
    for (int j = a; j < b; ++j) sum += token[at(j)];
    chunks.push_back(paper ? sum : sum / (b - a));
    if (!paper && a >= n - window)
      chunks.back() = 1e6 * (1 + a);  // equal on paper: the newest stays
  }
  const int count = static_cast<int>(chunks.size());
  const Amount size = amount_of(c.text("budget", "20%"));
  const int part = size.kind == Amount::share ? static_cast<int>(count * share_of(size))
                                              : static_cast<int>(1LL * count * budget / n);
  const int keep = paper ? budget / length : std::max(1, part);
  Tokens gone;
  for (const std::size_t e : drop(chunks, keep, near)) {
    for (int j = static_cast<int>(e) * length;
         j < std::min((static_cast<int>(e) + 1) * length, end); ++j) {
      gone.push_back(j);
    }
  }
  return without(range(0, n), gone);
}

void chunkkv(const World& u, const Moment& m, int model_layer, Memory& memory, Verdict& out) {
  const int block = model_layer / u.policy.count("reuse", 1);
  bool near = false;
  if (memory.leader_set.count(block) == 0) memory.leader_set[block] = chunk_set(u, m, near);
  for (Tokens& kept : out.kept) kept = memory.leader_set[block];
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

// Importance of the stored heads: rows of the table that belong to stored layers.
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
  const int shared = static_cast<int>(std::floor(base / beta));
  const double all_heads = static_cast<double>(u.tables.gates.size()) * u.heads;
  if (n <= budget) return;
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

// [stored layers][heads] 1 = full head.
std::vector<std::vector<int>> full_heads(const World& u) {
  std::vector<Place> gates;
  for (std::size_t l = 0; l < u.tables.gates.size(); ++l) {
    for (std::size_t h = 0; h < u.tables.gates[l].size(); ++h) {
      gates.push_back({u.tables.gates[l][h], static_cast<int>(l), static_cast<int>(h)});
    }
  }
  std::stable_sort(gates.begin(), gates.end(),
                   [](const Place& a, const Place& b) { return a.score > b.score; });
  const double share = 1 - u.policy.real("sparsity", 0.7);
  const auto full = static_cast<std::size_t>(static_cast<double>(gates.size()) * share);
  std::vector<std::vector<int>> out(at(u.layers), std::vector<int>(at(u.heads), 0));
  for (std::size_t i = 0; i < full; ++i) {
    for (int l = 0; l < u.layers; ++l) {
      if (u.t.layers[at(l)].model_layer == gates[i].token) out[at(l)][at(gates[i].head)] = 1;
    }
  }
  return out;
}

// Budgets [layers, heads] of a power of the importance, within bounds, that add up to B heads.
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

// PyramidKV in the arithmetic of kvpress: entries of a layer, window included.
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

// criticalkv, chunk, block: spend a budget in the inner policy's name.
void wrapped(const World& u, const Moment& m, Verdict& out) {
  const Choice& c = u.policy;
  const Choice p = c.inner();
  const int budget = budget_of(u, p), b = m.end();
  for (int h = 0; h < u.heads; ++h) {
    const Tokens& all = m.resident[at(h)];
    if (static_cast<int>(all.size()) <= budget) continue;
    const Tokens candidates = candidates_of(all, safe_of(p), b);
    Tokens kept = without(all, candidates);
    if (static_cast<int>(kept.size()) >= budget) {
      out.kept[at(h)] = {kept.end() - budget, kept.end()};
      continue;
    }
    const int left = budget - static_cast<int>(kept.size());
    const int n = static_cast<int>(candidates.size());
    bool near = false;
    const auto take = [&](const Tokens& from, const Values& score, int count) {
      Tokens gone;
      for (const std::size_t e : drop(score, count, near)) gone.push_back(from[e]);
      return without(from, gone);
    };
    if (c.name == "chunk") {
      const int length = c.count("length", 1024);
      // The remainder goes to the last chunk, and what is too much for it to those before.
      std::vector<int> share;
      int spent = 0;
      for (int a = 0; a < n; a += length) {
        share.push_back(static_cast<int>(1LL * left * std::min(length, n - a) / n));
        spent += share.back();
      }
      for (std::size_t i = share.size(); i-- > 0;) {
        const int room = std::min(length, n - static_cast<int>(i) * length) - share[i];
        share[i] += std::min(room, left - spent);
        spent += std::min(room, left - spent);
      }
      for (std::size_t i = 0; i < share.size(); ++i) {
        const int a = static_cast<int>(i) * length;
        const Tokens part(candidates.begin() + a, candidates.begin() + std::min(a + length, n));
        const Tokens some = take(part, score_by(u, p, m, h, part), share[i]);
        kept.insert(kept.end(), some.begin(), some.end());
      }
    } else if (c.name == "block") {
      const int size = c.count("size", 128);
      Tokens held(candidates.begin(), candidates.begin() + left);
      for (int a = left; a < n; a += size) {
        held.insert(held.end(), candidates.begin() + a, candidates.begin() + std::min(a + size, n));
        held = take(held, score_by(u, p, m, h, held), left);
      }
      kept.insert(kept.end(), held.begin(), held.end());
    } else {  // criticalkv
      const int first = std::max(1, static_cast<int>(c.real("ratio", 0.5) * budget));
      const Values score = score_by(u, p, m, h, candidates);
      // Votes are means over the window's rows next to epsilon.
      const int rows = p.name == "snapkv" ? std::min(p.count("window", 32), b) : 1;
      const Tokens sure =
          take(candidates, score, std::max(0, first - static_cast<int>(kept.size())));
      const Tokens rest = without(candidates, sure);
      const auto [g0, g1] = readers(u.t, u.heads, h);
      const int dv = u.t.v_head_dim;
      Values second;
      for (const int j : rest) {
        const double* v = value_of(u, m.l, u.kv_head(h), j);
        double norm = 0;
        if (u.tables.wo.empty()) {
          for (int i = 0; i < dv; ++i) norm += std::abs(v[i]);
        } else {
          const Values& wo = u.tables.wo[at(m.l)];
          const int width = u.t.query_heads * dv;
          for (int g = g0; g < g1; ++g) {
            for (int x = 0; x < static_cast<int>(wo.size()) / width; ++x) {
              double sum = 0;
              for (int i = 0; i < dv; ++i) sum += wo[at(x * width + g * dv + i)] * v[i];
              norm += std::abs(sum) / (g1 - g0);
            }
          }
        }
        const auto place = std::find(candidates.begin(), candidates.end(), j) - candidates.begin();
        second.push_back((score[static_cast<std::size_t>(place)] / rows + c.real("epsilon", 1e-4)) *
                         norm);
      }
      const Tokens more = take(rest, second, left - static_cast<int>(sure.size()));
      kept.insert(kept.end(), sure.begin(), sure.end());
      kept.insert(kept.end(), more.begin(), more.end());
    }
    std::sort(kept.begin(), kept.end());
    out.kept[at(h)] = kept;
    out.near[at(h)] = near ? 1 : 0;
  }
}

// Entries that leave the window are judged.
void dms(const World& u, const Moment& m, Verdict& out) {
  const Choice p = u.policy.inner();
  const double threshold = u.policy.real("threshold", 0);
  for (int h = 0; h < u.heads; ++h) {
    const Tokens old =
        candidates_of(m.resident[at(h)], {0, u.policy.count("window", 128)}, m.end());
    const Values score = score_by(u, p, m, h, old);
    Tokens gone;
    for (std::size_t e = 0; e < old.size(); ++e) {
      if (score[e] < threshold) gone.push_back(old[e]);
      if (near_tie(score[e], threshold)) out.near[at(h)] = 1;
    }
    out.kept[at(h)] = without(m.resident[at(h)], gone);
  }
}

// Which entries the gate lets in.
std::vector<char> write_gate(const World& u) {
  const Choice& c = u.policy;
  const int window = c.count("window", 256);
  const std::string gate = c.text("gate", "logit");
  const Amount rate = amount_of(c.text("rate", "25%"));
  std::vector<char> out(at(u.layers) * at(u.heads) * at(u.t.tokens), 0);
  if (gate == "file") {
    const auto tau = static_cast<double>(static_cast<float>(c.real("tau", 0.1)));  // as gates are
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = u.tables.scores[i] > tau ? 1 : 0;
    return out;
  }
  if (gate == "random") {
    for (int l = 0; l < u.layers; ++l) {
      for (int h = 0; h < u.heads; ++h) {
        for (int j = 0; j < u.t.tokens; ++j) {
          std::uint64_t x = mix(static_cast<std::uint64_t>(c.count("seed", 0)));
          for (const int key : {u.t.layers[at(l)].model_layer, h, j}) {
            x = mix(x ^ static_cast<std::uint64_t>(key));
          }
          const double drawn = (static_cast<double>(x >> 12) + 0.5) / 4503599627370496.0;
          out[u.flat(l, h, j)] = drawn > 1 - share_of(rate) ? 1 : 0;
        }
      }
    }
    return out;
  }
  const bool outputs = gate == "oracle_out";
  require(outputs || gate == "oracle", "unknown gate");
  Values utility(out.size(), 0.0), outside;
  for (int l = 0; l < u.layers; ++l) {
    for (int g = 0; g < u.t.query_heads; ++g) {
      for (int row = 0; row < u.t.tokens; ++row) {
        const Values p = full_attention(u, l, g, row);
        const int h = g / u.group(), dv = u.t.v_head_dim;
        Values o(at(dv), 0.0);
        for (int j = 0; j <= row && outputs; ++j) {
          for (int x = 0; x < dv; ++x) o[at(x)] += p[at(j)] * value_of(u, l, u.kv_head(h), j)[x];
        }
        for (int j = 0; j + window <= row; ++j) {
          double& all_rows = utility[u.flat(l, h, j)];
          if (!outputs) {
            all_rows = std::max(all_rows, p[at(j)]);
            continue;
          }
          double square = 0;  // |v - o|^2
          for (int x = 0; x < dv; ++x) {
            square += std::pow(value_of(u, l, u.kv_head(h), j)[x] - o[at(x)], 2);
          }
          const double change = std::pow(p[at(j)] / (1 - p[at(j)]), 2) * square;
          all_rows += change / (1 - std::min(1.0, static_cast<double>(window) / (u.t.tokens - j)));
        }
      }
    }
    for (int h = 0; h < u.heads; ++h) {
      const int last = u.point > window ? u.point - window : u.point;  // short prompts: all of it
      for (int j = 0; j < last; ++j) outside.push_back(utility[u.flat(l, h, j)]);
    }
  }
  std::sort(outside.begin(), outside.end(), std::greater<>());
  const Decimal percent = parse_decimal(rate.decimal);
  const auto admit = static_cast<std::size_t>(
      percent.digits * static_cast<long long>(outside.size()) / (100 * percent.scale));
  const double theta = admit < outside.size() ? outside[admit] : -1;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = utility[i] > theta ? 1 : 0;
  return out;
}

void locret(const World& u, const Moment& m, Verdict& out) {
  const Choice& c = u.policy;
  const int last = u.point - c.count("local", 100), b = m.end();
  if (b > last) return;
  const Amount size = amount_of(c.text("budget", "20%"));
  const bool share = size.kind == Amount::share;
  int budget = share ? static_cast<int>(share_of(size) * b) : budget_of(u, c);
  int stabilizers = c.count("stabilizers", 2500);
  if (!c.has("stabilizers")) stabilizers = std::min(stabilizers, budget_of(u, c) / 2);
  if (share) budget = std::max(stabilizers, (budget + 63) / 64 * 64);
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    const auto score = [&](const Tokens& entries) {
      Values x;
      for (const int j : entries) x.push_back(u.tables.scores[u.flat(m.l, h, j)]);
      return x;
    };
    out.kept[at(h)] =
        best(m.resident[at(h)], {0, b < last ? stabilizers : 0}, b, budget, score, near);
  }
}

Verdict decide(const World& u, const Moment& m, Memory& memory) {
  const Choice& c = u.policy;
  const int b = m.end(), model_layer = u.t.layers[at(m.l)].model_layer;
  Verdict out(m);
  const bool at_point = b == u.point;
  // Every `rows` rows from the eviction point on, or at the end of the pass that holds such a row.
  const auto due = [&](int rows) {
    return b > u.point && (b - u.point) / rows > (m.pass.begin - u.point) / rows;
  };
  const auto stream = [&](int h, int sinks, int window) {
    out.kept[at(h)] =
        without(m.resident[at(h)], candidates_of(m.resident[at(h)], {sinks, window}, b));
  };
  const Choice whose = c.has("inner") ? c.inner() : c;
  const int skip = c.name == "adakv" ? 0 : whose.count("skip", c.name == "dbudgetkv" ? 2 : 0);
  if (model_layer < skip) return out;
  if (c.name == "simlayerkv") {
    simlayerkv(u, m, memory, out);
  } else if (c.name == "prulong") {
    const std::vector<std::vector<int>> full = full_heads(u);
    for (int h = 0; h < u.heads; ++h) {
      if (full[at(m.l)][at(h)] == 0) stream(h, c.count("sinks", 128), c.count("window", 1024));
    }
  } else if (c.name == "baklava") {
    bool near = false;
    const std::vector<int> budgets = water_filling(u, budget_of(u, c), near);
    for (int h = 0; h < u.heads; ++h) {
      const int budget = budgets[at(m.l * u.heads + h)];
      const int sinks = std::min(c.count("sinks", 4), budget);
      stream(h, sinks, budget - sinks);
    }
    if (near) std::fill(out.near.begin(), out.near.end(), 1);
  } else if (c.name == "dms") {
    dms(u, m, out);
  } else if (c.name == "write_gate") {
    for (int h = 0; h < u.heads; ++h) {
      Tokens gone;
      for (const int j : m.resident[at(h)]) {
        if (j < b - c.count("window", 256) && u.admitted[u.flat(m.l, h, j)] == 0) gone.push_back(j);
      }
      out.kept[at(h)] = without(m.resident[at(h)], gone);
    }
  } else if (c.name == "locret") {
    locret(u, m, out);
  } else if (c.name == "decoding") {
    if (due(c.count("every", 512))) {
      plain(u, c.inner(), m, c.count("target", 2048), out);
    }
  } else if (c.name == "foresightkv") {
    if (at_point || due(c.count("interval", 128))) {
      plain(u, c, m, budget_of(u, c), out);
    }
  } else if (!at_point) {
    return out;
  } else if (c.name == "adakv") {
    adakv(u, m, model_layer, out);
  } else if (c.name == "chunkkv") {
    chunkkv(u, m, model_layer, memory, out);
  } else if (c.name == "dbudgetkv") {
    dbudgetkv(u, m, out);
  } else if (c.name == "headkv") {
    headkv(u, m, model_layer, out);
  } else if (c.name == "pyramidkv") {
    const int window = std::min(c.count("window", 8), b);
    const int count = pyramid_count(u, model_layer, b, window);
    if (b > count && count <= window) {
      keep_newest(m, count, out);
    } else if (b > count) {
      const Ballot x = ballot(u, c, m, window);
      for (int h = 0; h < u.heads; ++h) keep_voted(x, m, h, count - window, out);
    }
  } else if (c.name == "criticalkv" || c.name == "chunk" || c.name == "block") {
    wrapped(u, m, out);
  } else {
    plain(u, c, m, budget_of(u, c), out);
  }
  return out;
}

// ---- replay ---------------------------------------------------------------------------------

Tokens residents(const World& u, const Outcome& r, int l, int h, int row) {
  Tokens out;
  for (int j = 0; j <= row; ++j) {
    if (r.death[u.flat(l, h, j)] > row) out.push_back(j);
  }
  return out;
}

// What a row reads of a stored head.
Tokens reads(const World& u, const Outcome& r, int l, int h, int row) {
  Tokens out = residents(u, r, l, h, row);
  const Choice& c = u.policy;
  if (c.name != "write_gate" || row >= u.point || c.is("masks_prefill", "false", "true"))
    return out;
  Tokens hidden;
  for (const int j : out) {
    if (j <= row - c.count("window", 256) && u.admitted[u.flat(l, h, j)] == 0) hidden.push_back(j);
  }
  return without(out, hidden);
}

void replay(const World& u, Outcome& r) {
  Memory memory;
  memory.lazy.assign(at(u.layers), 0);
  for (int l = 0; l < u.layers; ++l) {
    for (const Pass& pass : u.passes) {
      if (pass.end == u.t.tokens) break;  // after the last pass nothing needs to be evicted
      Moment m{l, pass, {}};
      for (int h = 0; h < u.heads; ++h) m.resident.push_back(residents(u, r, l, h, pass.end - 1));
      const Verdict verdict = decide(u, m, memory);
      for (int h = 0; h < u.heads; ++h) {
        const Tokens gone = without(m.resident[at(h)], verdict.kept[at(h)]);
        for (const int j : gone) r.death[u.flat(l, h, j)] = pass.end;
        const bool near = verdict.near[at(h)] != 0;
        r.near_count.decisions += gone.empty() ? 0 : 1;
        r.near_count.near_ties += near ? 1 : 0;
        if (near) r.near[at(l) * at(u.heads) + at(h)] = 1;
      }
    }
  }
}

// ---- bytes ----------------------------------------------------------------------------------

// State beside K and V that a policy keeps for the whole model while `row` attends, with `entries`
// resident.
long long state_of(const World& u, const Choice& c, int row, long long entries) {
  const Trace& t = u.t;
  const long long d = t.head_dim, dv = t.v_head_dim, layers = u.layers, heads = u.heads;
  const long long queries = t.query_heads, group = u.group();
  if (c.name == "keydiff") return layers * heads * d * 4;      // the anchors
  if (c.name == "expected_attention" && row == u.point - 1) {  // means and covariances
    const bool covariance = c.is("covariance", "true", "true");
    return layers * queries * (d + (covariance ? d * d : 0)) * 4;
  }
  if (c.name == "observed_attention") return row < u.point ? 4 * entries : 0;
  if (c.name == "simlayerkv") return (layers + 7) / 8;
  if (c.name == "adakv" || c.name == "headkv" || c.name == "baklava") return 4 * layers * heads;
  if (c.name == "prulong") return (layers * heads + 7) / 8;
  if (c.name == "judgeq") {  // 32 embeddings, and their entries at the prompt's end
    return 32 * queries * d * kBytes +
           (row == u.point - 1 ? 32 * layers * heads * u.entry_bytes() : 0);
  }
  if (c.name == "foresightkv") {  // sums of an entry, queries of an interval, the published network
    return 2 * group * kBytes * entries + layers * c.count("interval", 128) * queries * d * kBytes +
           layers * heads * ((d + dv + 8 * group) * 16 + 33) * kBytes;
  }
  if (c.name == "locret") {  // a score per entry, and the published heads of 1,024 units
    const long long weights = (queries * d + heads * (d + dv)) * 1024 + 1024 * heads;
    return kBytes * (entries + layers * weights);
  }
  if (c.name == "write_gate") {  // the published network, block tables, pending decisions
    const long long hidden = 4 * d;
    const long long weights =
        c.is("gate", "random", "logit") ? 0 : heads * (hidden * 2 * d + 2 * hidden + 1) + 2 * d;
    return layers * weights * kBytes + 4 * layers * heads * ((t.tokens + 15) / 16) +
           layers * heads * c.count("window", 256);
  }
  return 0;
}

long long overhead(const World& u, int row, long long entries) {
  const Choice& c = u.policy;
  if (!c.has("inner")) return state_of(u, c, row, entries);
  const Choice p = c.inner();
  long long own = 0;
  if (c.name == "dms") own = 1LL * u.layers * u.heads * ((c.count("window", 128) + 7) / 8);
  if (c.name == "decoding" && p.name == "snapkv" && row >= u.point) {
    const int rows = std::min(std::max(256, p.count("window", 32)), row - u.point + 1);
    own = 1LL * u.layers * rows * u.t.query_heads * u.t.head_dim * kBytes;
  }
  return own + state_of(u, p, row, entries);
}

void measure_bytes(const World& u, Outcome& r) {
  for (int row = 0; row < u.t.tokens; ++row) {
    long long entries = 0;
    for (int l = 0; l < u.layers; ++l) {
      for (int h = 0; h < u.heads; ++h) {
        entries += static_cast<long long>(residents(u, r, l, h, row).size());
      }
    }
    r.bytes.push_back({entries * u.entry_bytes(), overhead(u, row, entries)});
  }
}

// ---- fidelity -------------------------------------------------------------------------------

// Mass is taken without the sink logit, p' with it.
void measure_fidelity(const World& u, Outcome& r) {
  const Trace& t = u.t;
  Values prefill, decode, errors;
  for (int l = 0; l < u.layers; ++l) {
    for (int g = 0; g < t.query_heads; ++g) {
      for (int row = 0; row < t.tokens; ++row) {
        const Values p = full_attention(u, l, g, row);
        const Tokens active = reads(u, r, l, g / u.group(), row);
        double kept = 0;
        for (const int j : active) kept += p[at(j)];
        const double total = std::accumulate(p.begin(), p.end(), 0.0);
        (row < u.prompt ? prefill : decode).push_back(kept / total);
        if (row < u.prompt || t.layers[at(l)].v.empty()) continue;
        errors.push_back(output_error(t, t.layers[at(l)], g / (t.query_heads / t.kv_heads),
                                      range(0, row + 1), p, active,
                                      attention(u, l, g, row, active)));
      }
    }
  }
  r.mass_prefill = mean(prefill);
  r.mass_decode = mean(decode);
  r.error_decode = mean(errors);
  r.error_decode_max = errors.empty() ? kNaN : *std::max_element(errors.begin(), errors.end());
}

int stored_heads(const Trace& t, const Choice& c) {
  const Choice whose = c.has("inner") ? c.inner() : c;
  const bool voted = whose.name == "snapkv" || whose.name == "adakv" || whose.name == "headkv" ||
                     whose.name == "pyramidkv";
  return voted && whose.is("group", "none", "mean") ? t.query_heads : t.kv_heads;
}

// Prefill passes are cut at `row`, too.
void cut_at(std::vector<Pass>& passes, int row) {
  for (std::size_t i = 0; i < passes.size(); ++i) {
    if (passes[i].begin < row && row < passes[i].end) {
      const Pass tail{row, passes[i].end};
      passes[i].end = row;
      passes.insert(passes.begin() + static_cast<std::ptrdiff_t>(i) + 1, tail);
    }
  }
}

}  // namespace

Outcome simulate(const Trace& trace, const std::string& policy, const Parameters& parameters,
                 const Plan& plan, const Tables& tables) {
  World u{trace, {policy, parameters, ""}, tables, 0, 0, 0, 0, {}, {}};
  u.layers = static_cast<int>(trace.layers.size());
  u.prompt = plan.prompt >= 0 ? plan.prompt : trace.prompt_tokens;
  u.point = plan.evict_at >= 0 ? plan.evict_at : u.prompt;
  require(u.prompt > 0 && u.prompt <= trace.tokens && u.point > 0 && u.point <= u.prompt,
          "wrong plan");
  u.heads = stored_heads(trace, u.policy);
  u.passes = make_passes(plan.chunk, u.point, u.prompt, trace.tokens);
  if (policy == "locret") cut_at(u.passes, u.point - u.policy.count("local", 100));
  if (policy == "write_gate") u.admitted = write_gate(u);

  Outcome r;
  r.heads = u.heads;
  r.near.assign(at(u.layers) * at(u.heads), 0);
  r.death.assign(r.near.size() * at(trace.tokens), trace.tokens);
  replay(u, r);
  measure_bytes(u, r);
  measure_fidelity(u, r);
  if (policy == "write_gate" && u.policy.is("masks_prefill", "true", "true")) {
    for (int row = 0; row < trace.tokens; ++row) {
      r.read.push_back(0);
      for (int l = 0; l < u.layers; ++l) {
        for (int h = 0; h < u.heads; ++h) {
          const int window = trace.layers[at(l)].sliding_window;
          for (const int j : reads(u, r, l, h, row)) {
            r.read.back() += window == 0 || j > row - window ? 1 : 0;
          }
        }
      }
    }
  }
  return r;
}

}  // namespace kvspan::twin::postfill
