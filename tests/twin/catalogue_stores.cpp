// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_stores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "tests/twin/parts.h"

namespace kvspan::twin::stores {
namespace {

constexpr int kElement = 2;  // bytes of an element as it is born

// ---- parameters -----------------------------------------------------------------------------

struct Fraction {
  long long top = 0, bottom = 1;
};

Fraction parse_share(const std::string& text) {
  require(!text.empty() && text.back() == '%', "a share is written in per cent");
  Fraction f{0, 100};
  bool point = false;
  for (const char c : text.substr(0, text.size() - 1)) {
    if (c == '.') {
      point = true;
      continue;
    }
    f.top = 10 * f.top + (c - '0');
    if (point) f.bottom *= 10;
  }
  return f;
}

int floor_of(const Fraction& f, int n) { return static_cast<int>(f.top * n / f.bottom); }

struct Setup {
  const Trace& trace;
  const Parameters& parameters;
  std::string evictor, store;
  int layers, heads, prompt, point;
  std::vector<Pass> passes;

  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback) const {
    const auto found = parameters.find(key);
    return found == parameters.end() ? fallback : found->second;
  }
  [[nodiscard]] int number(const std::string& key, int fallback) const {
    const auto found = parameters.find(key);
    return found == parameters.end() ? fallback : std::stoi(found->second);
  }
  [[nodiscard]] bool has(const std::string& key) const { return parameters.count(key) != 0; }
  [[nodiscard]] long long entry_bytes() const {
    return static_cast<long long>(trace.head_dim + trace.v_head_dim) * kElement;
  }
  [[nodiscard]] long long held_bytes() const;
  // Entries of a head that a budget stands for; one in bytes is divided by an entry as it is held.
  [[nodiscard]] int budget(const std::string& written) const {
    if (written.back() == '%') return std::max(1, floor_of(parse_share(written), point));
    if (written.back() != 'B') return std::stoi(written);
    return static_cast<int>(std::stoll(written) / (held_bytes() * layers * heads));
  }
};

Setup make_setup(const Trace& t, const std::string& policy, const Parameters& p, const Plan& plan) {
  const int prompt = plan.prompt > 0 ? plan.prompt : t.prompt_tokens;
  const int point = plan.evict_at > 0 ? plan.evict_at : prompt;
  require(prompt <= t.tokens && point <= prompt, "wrong plan");
  Setup u{t, p, "", "", static_cast<int>(t.layers.size()), t.kv_heads, prompt, point, {}};
  const std::size_t plus = policy.find('+');
  u.evictor = plus == std::string::npos ? "" : policy.substr(0, plus);
  u.store = plus == std::string::npos ? policy : policy.substr(plus + 1);
  const int step = plan.chunk > 0 ? plan.chunk : point;
  for (int a = 0; a < point; a += step) u.passes.push_back({a, std::min(a + step, point)});
  if (point < prompt) u.passes.push_back({point, prompt});
  for (int a = prompt; a < t.tokens; ++a) u.passes.push_back({a, a + 1});
  return u;
}

// ---- fp16 and quantisers --------------------------------------------------------------------

// Rounding of x to an integer; `near` counts what fp32 may round the other way, being off by `slack`.
double rounded(double x, double slack, long long& near) {
  const double distance = std::abs(x - std::floor(x) - 0.5);
  if (distance > 0 && distance < slack) ++near;
  return std::nearbyint(x);
}

// `error`: of x in fp32, where it is not the last bit's.
double to_half(double x, long long& near, double error = 0) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent - 11, -24));
  return rounded(x / quantum, std::max(1e-3, error / quantum), near) * quantum;
}

// scale = fp16((max - min) / (2^bits - 1)), zero = fp16(min). `slack`: relative error of the input in
// fp32; 0 for the trace's own elements.
void quantise(std::vector<double*>& x, int bits, double slack, Outcome& out) {
  double low = kInfinity, high = -kInfinity;
  for (const double* e : x) {
    low = std::min(low, *e);
    high = std::max(high, *e);
  }
  const int levels = (1 << bits) - 1;
  const double reach = slack * std::max(std::abs(low), std::abs(high));
  const double scale = to_half((high - low) / levels, out.near_codes, reach / levels);
  const double zero = to_half(low, out.near_codes, reach);
  for (double* e : x) {
    ++out.codes;
    if (scale == 0) {
      *e = zero;
      continue;
    }
    const double code = (*e - zero) / scale;
    const double error = 1e-6 * (1 + std::abs(code)) + slack * std::abs(*e) / scale;
    *e = std::clamp(rounded(code, error, out.near_codes), 0.0, 1.0 * levels) * scale + zero;
  }
}

// Groups of `group` consecutive channels of one vector.
void quantise_vector(std::vector<double>& x, int bits, int group, double slack, Outcome& out) {
  for (std::size_t from = 0; from < x.size(); from += at(group)) {
    std::vector<double*> part;
    for (std::size_t c = from; c < std::min(x.size(), from + at(group)); ++c) part.push_back(&x[c]);
    quantise(part, bits, slack, out);
  }
}

long long packed(int dim, int bits, int group) {
  return (static_cast<long long>(dim) * bits + 7) / 8 + 4LL * ((dim + group - 1) / group);
}

long long Setup::held_bytes() const {
  const int d = trace.head_dim, dv = trace.v_head_dim;
  if (store == "kivi") {
    const int bits = number("kivi.bits", 2), group = number("kivi.group", 32);
    const int across = std::min(group, dv);
    return (d * bits + 7) / 8 + d * 4 / group + packed(dv, bits, across);
  }
  if (store == "qpruningkv" && number("qpruningkv.bits", 4) != 16) {
    const int bits = number("qpruningkv.bits", 4), group = number("qpruningkv.q_group", 64);
    return packed(d, bits, std::min(group, d)) + packed(dv, bits, std::min(group, dv));
  }
  if (store == "kvquant") {  // rounded up
    const Fraction o = parse_share(text("kvquant.outliers", "1%"));
    const long long bits = number("kvquant.bits", 4) * o.bottom + 32 * o.top;
    return (heads * (d + dv) * bits + 12 * 8 * o.bottom) / (8 * o.bottom * heads) + 1;
  }
  if (store == "think") {
    const int pruned = floor_of(parse_share(text("think.ratio", "40%")), d);
    return static_cast<long long>(d - pruned + dv) * kElement;
  }
  return entry_bytes();
}

// ---- one layer ------------------------------------------------------------------------------

// An entry as it is held.
struct Entry {
  std::vector<double> k, v;
  long long k_bytes = 0, v_bytes = 0;
  bool alive = true;     // as of now
  bool competes = true;  // mikv: in the high tier
  bool k_packed = false, v_packed = false;
};

// Victims of one KV head, as their mean.
struct Folded {
  int count = 0;
  std::vector<double> k, v;  // sums
};

struct LayerState {
  const Layer* layer = nullptr;
  int index = 0;
  std::vector<std::vector<Entry>> entries;      // [kv_heads][tokens]
  std::vector<std::vector<double>> column_sum;  // [query_heads][tokens]
  std::vector<Folded> folded;                   // [kv_heads]
  std::vector<std::vector<double>> balancer;    // [kv_heads][head_dim] mikv
};

std::vector<double> stored(const std::vector<double>& x, int heads, int dim, int token, int head) {
  const auto first = static_cast<std::ptrdiff_t>((at(token) * at(heads) + at(head)) *
                                                 static_cast<std::size_t>(dim));
  return {x.begin() + first, x.begin() + first + dim};
}

double logit(const Trace& t, const std::vector<double>& q, const std::vector<double>& k, bool cap) {
  double z = 0;
  for (std::size_t i = 0; i < q.size(); ++i) z += q[i] * k[i];
  z *= t.score_scale;
  return cap && t.softcap > 0 ? t.softcap * std::tanh(z / t.softcap) : z;
}

// exp(z - max) / sum, a sink logit in the sum; -infinity gives 0.
std::vector<double> softmax(const Layer& layer, int head, std::vector<double> z) {
  const bool sink = !layer.sink_logits.empty();
  double top = sink ? layer.sink_logits[at(head)] : -kInfinity;
  for (const double x : z) top = std::max(top, x);
  double sum = sink ? std::exp(layer.sink_logits[at(head)] - top) : 0;
  for (double& x : z) sum += (x = std::exp(x - top));
  for (double& x : z) x /= sum;
  return z;
}

bool readable(const Layer& layer, int row, int token) {
  return token <= row && (layer.sliding_window == 0 || token > row - layer.sliding_window);
}

struct Row {
  std::vector<double> p;    // [tokens] full cache
  std::vector<double> own;  // [tokens] p' over the policy's entries, as the trace has them
  double mass = 0, error = 0, logits = 0;
};

Row attend(const Setup& u, const LayerState& s, int g, int i) {
  const Trace& t = u.trace;
  const Layer& layer = *s.layer;
  const int h = g / (t.query_heads / t.kv_heads);
  const std::vector<double> q = stored(layer.q, t.query_heads, t.head_dim, i, g);
  std::vector<double> full(at(t.tokens), -kInfinity), own = full, held = full;
  for (int j = 0; j <= i; ++j) {
    if (!readable(layer, i, j)) continue;
    const Entry& e = s.entries[at(h)][at(j)];
    full[at(j)] = logit(t, q, stored(layer.k, t.kv_heads, t.head_dim, j, h), true);
    if (!e.alive) continue;
    own[at(j)] = full[at(j)];
    held[at(j)] = logit(t, q, e.k, true);
  }
  Row r;
  r.p = softmax(layer, g, full);
  r.own = softmax(layer, g, own);
  const Folded& folded = s.folded[at(h)];
  std::vector<double> z = held;
  if (folded.count > 0) {
    std::vector<double> mean = folded.k;
    for (double& x : mean) x /= folded.count;
    z.push_back(logit(t, q, mean, false) + std::log(folded.count));
  }
  const std::vector<double> p_held = softmax(layer, g, z);

  double total = 0, kept = 0;
  for (int j = 0; j <= i; ++j) {
    total += r.p[at(j)];
    if (own[at(j)] == -kInfinity) continue;
    kept += r.p[at(j)];
    r.logits += r.p[at(j)] * std::abs(held[at(j)] - full[at(j)]);
  }
  r.mass = kept / total;
  r.logits /= kept;
  double difference = 0, norm = 0;
  for (int x = 0; x < t.v_head_dim; ++x) {
    double a = 0, b = 0;
    for (int j = 0; j <= i; ++j) {
      a += r.p[at(j)] * stored(layer.v, t.kv_heads, t.v_head_dim, j, h)[at(x)];
      b += p_held[at(j)] * s.entries[at(h)][at(j)].v[at(x)];
    }
    if (folded.count > 0) b += p_held.back() * folded.v[at(x)] / folded.count;
    difference += (a - b) * (a - b);
    norm += a * a;
  }
  r.error = difference == 0 ? 0 : std::sqrt(difference) / std::sqrt(norm);
  return r;
}

// ---- eviction -------------------------------------------------------------------------------

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

// What leaves a head (or is demoted) at the end of a pass.
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

// ---- stores ---------------------------------------------------------------------------------

std::vector<int> alive(const LayerState& s, int h, int b) {
  std::vector<int> out;
  for (int j = 0; j < b; ++j) {
    if (s.entries[at(h)][at(j)].alive) out.push_back(j);
  }
  return out;
}

void age_kivi(const Setup& u, LayerState& s, int b, Outcome& out) {
  const Trace& t = u.trace;
  const int bits = u.number("kivi.bits", 2), residual = u.number("kivi.residual", 128);
  const int group = u.number("kivi.group", 32), across = std::min(group, t.v_head_dim);
  require(residual % group == 0, "residual is a multiple of group");
  require(t.head_dim * 4 % group == 0, "a key's share of a scale");
  require(t.v_head_dim % across == 0, "groups of a value");
  for (int h = 0; h < u.heads; ++h) {
    std::vector<int> k_waits, v_waits;
    for (const int j : alive(s, h, b)) {
      if (!s.entries[at(h)][at(j)].k_packed) k_waits.push_back(j);
      if (!s.entries[at(h)][at(j)].v_packed) v_waits.push_back(j);
    }
    const std::size_t flush = k_waits.size() / at(residual) * at(residual);
    for (std::size_t from = 0; from < flush; from += at(group)) {
      for (int c = 0; c < t.head_dim; ++c) {
        std::vector<double*> column;
        for (std::size_t e = from; e < from + at(group); ++e) {
          column.push_back(&s.entries[at(h)][at(k_waits[e])].k[at(c)]);
        }
        quantise(column, bits, 0, out);
      }
      for (std::size_t e = from; e < from + at(group); ++e) {
        Entry& entry = s.entries[at(h)][at(k_waits[e])];
        entry.k_packed = true;
        entry.k_bytes = (t.head_dim * bits + 7) / 8 + t.head_dim * 4 / group;
      }
    }
    for (std::size_t e = 0; e + at(residual) < v_waits.size(); ++e) {
      Entry& entry = s.entries[at(h)][at(v_waits[e])];
      quantise_vector(entry.v, bits, across, 0, out);
      entry.v_packed = true;
      entry.v_bytes = packed(t.v_head_dim, bits, across);
    }
  }
}

void age_qpruningkv(const Setup& u, LayerState& s, int b, Outcome& out) {
  const int bits = u.number("qpruningkv.bits", 4);
  const int group = u.number("qpruningkv.q_group", 64);
  require(u.trace.head_dim % std::min(group, u.trace.head_dim) == 0 &&
              u.trace.v_head_dim % std::min(group, u.trace.v_head_dim) == 0,
          "whole groups");
  if (b != u.point || bits == 16) return;
  for (int h = 0; h < u.heads; ++h) {
    for (const int j : alive(s, h, b)) {
      Entry& e = s.entries[at(h)][at(j)];
      quantise_vector(e.k, bits, std::min(group, u.trace.head_dim), 0, out);
      quantise_vector(e.v, bits, std::min(group, u.trace.v_head_dim), 0, out);
      e.k_bytes = packed(u.trace.head_dim, bits, std::min(group, u.trace.head_dim));
      e.v_bytes = packed(u.trace.v_head_dim, bits, std::min(group, u.trace.v_head_dim));
    }
  }
}

void age_think(const Setup& u, LayerState& s, int b, Outcome& out) {
  const Trace& t = u.trace;
  if (b != u.point) return;
  const int d = t.head_dim, group = t.query_heads / t.kv_heads;
  const int pruned = floor_of(parse_share(u.text("think.ratio", "40%")), d);
  const int window = std::min(u.number("think.window", 32), b);
  const int recent =
      u.text("think.preset", "paper") == "kvpress" ? 0 : u.number("think.recent", 32);
  for (int h = 0; h < u.heads; ++h) {
    std::vector<double> scores;
    const std::vector<int> left = alive(s, h, b);
    for (int c = 0; c < d; ++c) {
      double q2 = 0, k2 = 0;
      for (int g = h * group; g < (h + 1) * group; ++g) {
        for (int i = b - window; i < b; ++i) {
          const double x = stored(s.layer->q, t.query_heads, d, i, g)[at(c)];
          q2 += x * x / (window * group);
        }
      }
      for (const int j : left) {
        const double x = stored(s.layer->k, t.kv_heads, d, j, h)[at(c)];
        k2 += x * x / static_cast<double>(left.size());
      }
      scores.push_back(q2 * k2);
    }
    bool near = false;
    const std::vector<std::size_t> gone = losers(scores, d - pruned, near);
    out.near_codes += near ? 1 : 0;
    for (std::size_t i = 0; i + at(recent) < left.size(); ++i) {
      Entry& e = s.entries[at(h)][at(left[i])];
      for (const std::size_t c : gone) e.k[c] = 0;
      e.k_bytes = static_cast<long long>(d - pruned) * kElement;
    }
  }
}

void pack_mikv(const Setup& u, const LayerState& s, int h, Entry& e, int bits, Outcome& out) {
  const Trace& t = u.trace;
  const std::string group = u.text("mikv.group", "auto");
  const int k_group = std::min(t.head_dim, group == "auto" ? t.head_dim / 2 : std::stoi(group));
  const int v_group = std::min(t.v_head_dim, group == "auto" ? t.v_head_dim / 2 : std::stoi(group));
  const bool balanced = u.text("mikv.balancer", "true") == "true";
  for (int c = 0; c < t.head_dim && balanced; ++c) e.k[at(c)] *= s.balancer[at(h)][at(c)];
  quantise_vector(e.k, bits, k_group, balanced ? 1e-6 : 0, out);
  for (int c = 0; c < t.head_dim && balanced; ++c) e.k[at(c)] /= s.balancer[at(h)][at(c)];
  quantise_vector(e.v, bits, v_group, 0, out);
  e.k_bytes = packed(t.head_dim, bits, k_group);
  e.v_bytes = packed(t.v_head_dim, bits, v_group);
}

// `lost`: what the evictor would evict at the end of this pass.
void age_mikv(const Setup& u, LayerState& s, int b, const std::vector<std::vector<int>>& lost,
              Outcome& out) {
  const Trace& t = u.trace;
  const int group = t.query_heads / t.kv_heads;
  // A composed policy may demote before the prompt has ended: the balancer is of the rows so far.
  const bool first = s.balancer[0].empty() &&
                     (b >= u.point || std::any_of(lost.begin(), lost.end(),
                                                  [](const auto& x) { return !x.empty(); }));
  for (int h = 0; h < u.heads && first; ++h) {
    for (int c = 0; c < t.head_dim; ++c) {
      double q = 0, k = 0;
      for (int i = 0; i < std::min(b, u.point); ++i) {
        for (int g = h * group; g < (h + 1) * group; ++g) {
          q = std::max(q, std::abs(stored(s.layer->q, t.query_heads, t.head_dim, i, g)[at(c)]));
        }
        k = std::max(k, std::abs(stored(s.layer->k, t.kv_heads, t.head_dim, i, h)[at(c)]));
      }
      s.balancer[at(h)].push_back(q > 0 && k > 0 ? std::sqrt(q / k) : 1.0);
    }
  }
  const int high = u.number("mikv.hi", 16), low = u.number("mikv.lo", 2);
  for (int h = 0; h < u.heads; ++h) {
    for (const int j : lost[at(h)]) {
      Entry& e = s.entries[at(h)][at(j)];
      pack_mikv(u, s, h, e, low, out);
      e.competes = false;
    }
    for (const int j : alive(s, h, b)) {
      Entry& e = s.entries[at(h)][at(j)];
      if (high == 16 || b < u.point || !e.competes || e.k_packed) continue;
      pack_mikv(u, s, h, e, high, out);
      e.k_packed = true;
    }
  }
}

// Folds in what has left for good.
void age_less(const Setup& u, LayerState& s, const std::vector<std::vector<int>>& lost,
              Outcome& out) {
  if (u.text("less.variant", "fit") != "mean") return;
  const Trace& t = u.trace;
  for (int h = 0; h < u.heads; ++h) {
    Folded& f = s.folded[at(h)];
    f.k.resize(at(t.head_dim), 0.0);
    f.v.resize(at(t.v_head_dim), 0.0);
    for (const int j : lost[at(h)]) {
      ++f.count;
      const Entry& e = s.entries[at(h)][at(j)];
      for (std::size_t c = 0; c < f.k.size(); ++c) f.k[c] += e.k[c];
      for (std::size_t c = 0; c < f.v.size(); ++c) f.v[c] += e.v[c];
      out.folded[at(s.index * u.heads + h)].push_back(j);
    }
  }
}

// A range: without the lowest and highest floor(share / 2 n) of n values; fp16 centre and half width.
struct Range {
  double low = 0, high = 0, centre = 0, width = 0;
};

Range range_of(std::vector<double> x, const Fraction& share, Outcome& out) {
  std::sort(x.begin(), x.end());
  const int cut = floor_of({share.top, 2 * share.bottom}, static_cast<int>(x.size()));
  Range r{x[at(cut)], x[x.size() - 1 - at(cut)], 0, 0};
  r.centre = to_half((r.low + r.high) / 2, out.near_codes);
  r.width = to_half((r.high - r.low) / 2, out.near_codes);
  return r;
}

// codebook=uniform: 2^bits equal steps over the range. An outlier stays what it is.
double stepped(double x, const Range& r, int bits, Outcome& out) {
  ++out.codes;
  for (const double end : {r.low, r.high}) {
    const double distance = std::abs(x - end);
    if (distance > 0 && distance < 1e-6) ++out.near_codes;
  }
  if (x < r.low || x > r.high) return x;
  const int levels = (1 << bits) - 1;
  const double normal = r.width > 0 ? (x - r.centre) / r.width : 0;
  const double code = rounded((normal + 1) / 2 * levels, 1e-5, out.near_codes);
  return r.centre + r.width * (2 * std::clamp(code, 0.0, 1.0 * levels) / levels - 1);
}

void age_kvquant(const Setup& u, LayerState& s, Pass pass, Outcome& out) {
  const Trace& t = u.trace;
  const int bits = u.number("kvquant.bits", 4);
  const Fraction o = parse_share(u.text("kvquant.outliers", "1%"));
  const int d = t.head_dim, dv = t.v_head_dim;
  // Bytes of a head's first `tokens`: codes, outliers of 4 bytes, three numbers of 4 bytes a layer.
  const long long per_token =
      static_cast<long long>(u.heads) * (d + dv) * (bits * o.bottom + 32 * o.top) +
      12 * 8 * o.bottom;
  const auto upto = [&](int tokens) { return tokens * per_token / (8 * o.bottom * u.heads); };
  const bool deployed = u.text("kvquant.accounting", "paper") == "deploy";
  const auto key = [&](int token, int h) {  // before its rotation
    std::vector<double> x = stored(s.layer->k, t.kv_heads, d, token, h);
    turn(t.rope, d, -token, x);
    return x;
  };
  std::vector<std::vector<Range>> ranges(at(u.heads));
  for (int h = 0; h < u.heads; ++h) {
    for (int c = 0; c < d; ++c) {
      std::vector<double> channel;
      for (int i = 1; i < u.point / 2; ++i) channel.push_back(key(i, h)[at(c)]);
      ranges[at(h)].push_back(range_of(channel, o, out));
    }
  }
  for (int j = std::max(1, pass.begin); j < pass.end; ++j) {
    std::vector<double> values;
    for (int h = 0; h < u.heads; ++h) {
      const std::vector<double> v = stored(s.layer->v, t.kv_heads, dv, j, h);
      values.insert(values.end(), v.begin(), v.end());
    }
    const Range across = range_of(values, o, out);
    for (int h = 0; h < u.heads; ++h) {
      Entry& e = s.entries[at(h)][at(j)];
      e.k_bytes = deployed ? (d * bits + 7) / 8 : upto(j + 1) - upto(j);
      e.v_bytes = deployed ? (dv * bits + 7) / 8 : 0;
      e.k = key(j, h);
      for (int c = 0; c < d; ++c) e.k[at(c)] = stepped(e.k[at(c)], ranges[at(h)][at(c)], bits, out);
      turn(t.rope, d, j, e.k);
      for (double& x : e.v) x = stepped(x, across, bits, out);
    }
  }
}

// ---- the replay -----------------------------------------------------------------------------

// Bytes beside the entries while a row attends; `entries`: of all layers and heads; `competing`: of
// them, those in the high tier.
long long fixed_overhead(const Setup& u, int row, long long competing) {
  const Trace& t = u.trace;
  const long long all = static_cast<long long>(u.layers) * u.heads;
  if (u.store == "think") return row < u.point ? 0 : all * t.head_dim;
  if (u.store == "mikv") {  // tiers and balancer are there once the prompt has been read
    const bool balanced = u.text("mikv.balancer", "true") == "true";
    const long long scores = u.evictor.empty() ? 4 * competing : 0;
    if (row < u.point) return scores;
    return scores + (all * (row + 1) + 7) / 8 + (balanced ? all * t.head_dim * kElement : 0);
  }
  if (u.store == "kvquant") {
    const int bits = u.number("kvquant.bits", 4);
    if (u.text("kvquant.accounting", "paper") == "paper") {
      return u.layers * (4LL * u.heads * t.head_dim + 4LL * (1 << bits));
    }
    // For every token of the run: slots for outliers, a table of fp32, and codes not yet there.
    const Fraction o = parse_share(u.text("kvquant.outliers", "1%"));
    long long token = 4LL << bits, codes = 0;
    for (const int dim : {t.head_dim, t.v_head_dim}) {
      token += 8 * 2 * (floor_of({o.top, 2 * o.bottom}, u.heads * dim) + 1);
      codes += (dim * bits + 7) / 8;
    }
    return u.layers * t.tokens * token + all * codes * (t.tokens - row - 1);
  }
  const std::string variant = u.text("less.variant", "fit");
  if (u.store == "less" && variant != "none" && variant != "plus") {
    const long long r = u.number("less.rank", 8), d = t.head_dim;
    const long long element = u.text("less.state", "fp32") == "fp32" ? 4 : 2;
    const long long state = (r * t.v_head_dim + r) * element * all;
    const long long weights = 2 * (d * 512 + 512 * r) + r * r + 2 * r;
    const bool charged = u.text("less.weights", "paper") == "paper";
    return state + (charged ? weights * u.layers * t.query_heads * 2 : 0);
  }
  return 0;
}

long long entry_overhead(const Setup& u) {
  return u.evictor == "h2o" || (u.evictor.empty() && u.store == "less") ? 4 : 0;
}

}  // namespace

Outcome simulate(const Trace& trace, const std::string& policy, const Parameters& parameters,
                 const Plan& plan, const std::vector<int>& given) {
  const Setup u = make_setup(trace, policy, parameters, plan);
  require(
      u.evictor != "given" || given.size() == trace.layers.size() * at(u.heads) * at(trace.tokens),
      "deaths of another shape");
  const Trace& t = trace;
  const long long heads = u.heads;
  Outcome out;
  out.death.assign(at(u.layers) * at(u.heads) * at(t.tokens), t.tokens);
  out.near.assign(at(u.layers) * at(u.heads), 0);
  out.payload.assign(at(t.tokens), 0);
  out.overhead.assign(at(t.tokens), 0);
  out.folded.resize(at(u.layers) * at(u.heads));
  std::vector<long long> entries(at(t.tokens), 0), competing(at(t.tokens), 0);
  // [passes][layers] bytes and entries before a pass and after its decisions.
  struct Mark {
    long long bytes = 0, entries = 0;
  };
  std::vector<std::vector<Mark>> before(u.passes.size(), std::vector<Mark>(at(u.layers)));
  std::vector<std::vector<Mark>> after = before;
  double mass = 0, error = 0, logits = 0;
  long long measured = 0;

  for (int l = 0; l < u.layers; ++l) {
    LayerState s;
    s.layer = &t.layers[at(l)];
    s.index = l;
    s.column_sum.assign(at(t.query_heads), std::vector<double>(at(t.tokens), 0.0));
    s.folded.resize(at(u.heads));
    s.balancer.resize(at(u.heads));
    for (int h = 0; h < u.heads; ++h) {
      s.entries.emplace_back();
      for (int j = 0; j < t.tokens; ++j) {
        Entry e;
        e.k = stored(s.layer->k, t.kv_heads, t.head_dim, j, h);
        e.v = stored(s.layer->v, t.kv_heads, t.v_head_dim, j, h);
        e.k_bytes = static_cast<long long>(t.head_dim) * kElement;
        e.v_bytes = static_cast<long long>(t.v_head_dim) * kElement;
        s.entries.back().push_back(e);
      }
    }
    const auto mark = [&](int tokens) {
      Mark m;
      for (const auto& head : s.entries) {
        for (int j = 0; j < tokens; ++j) {
          const Entry& e = head[at(j)];
          m.bytes += e.alive ? e.k_bytes + e.v_bytes : 0;
          m.entries += e.alive ? 1 : 0;
        }
      }
      return m;
    };

    for (std::size_t index = 0; index < u.passes.size(); ++index) {
      const Pass pass = u.passes[index];
      const int b = pass.end;
      before[index][at(l)] = mark(pass.begin);
      for (int i = pass.begin; i < b; ++i) {
        for (int h = 0; h < u.heads; ++h) {
          for (int j = 0; j <= i; ++j) {
            const Entry& e = s.entries[at(h)][at(j)];
            if (!e.alive) continue;
            out.payload[at(i)] += e.k_bytes + e.v_bytes;
            entries[at(i)] += 1;
            competing[at(i)] += e.competes ? 1 : 0;
          }
        }
        for (int g = 0; g < t.query_heads; ++g) {
          const Row r = attend(u, s, g, i);
          for (int j = 0; j <= i; ++j) s.column_sum[at(g)][at(j)] += r.own[at(j)];
          if (i < u.prompt) continue;
          ++measured;
          mass += r.mass;
          error += r.error;
          logits += r.logits;
          out.error_decode_max = std::max(out.error_decode_max, r.error);
        }
      }
      if (b == t.tokens) {
        after[index][at(l)] = mark(b);
        break;
      }
      std::vector<std::vector<int>> lost(at(u.heads));
      for (int h = 0; h < u.heads; ++h) {
        bool near = false;
        lost[at(h)] = victims(u, s, h, pass, given, near);
        if (lost[at(h)].empty()) continue;
        ++out.decisions;
        if (near) {
          ++out.near_ties;
          out.near[at(l * u.heads + h)] = 1;
        }
        if (u.store == "mikv") continue;
        for (const int j : lost[at(h)]) {
          s.entries[at(h)][at(j)].alive = false;
          out.death[(at(l) * at(u.heads) + at(h)) * at(t.tokens) + at(j)] = b;
        }
      }
      if (u.store == "kivi") age_kivi(u, s, b, out);
      if (u.store == "qpruningkv") age_qpruningkv(u, s, b, out);
      if (u.store == "think") age_think(u, s, b, out);
      if (u.store == "mikv") age_mikv(u, s, b, lost, out);
      if (u.store == "less") age_less(u, s, lost, out);
      if (u.store == "kvquant") age_kvquant(u, s, pass, out);
      after[index][at(l)] = mark(b);
    }
  }

  if (measured > 0) {
    out.mass_decode = mass / static_cast<double>(measured);
    out.error_decode = error / static_cast<double>(measured);
    out.logit_decode = logits / static_cast<double>(measured);
  }
  const long long each = entry_overhead(u);
  for (int i = 0; i < t.tokens; ++i) {
    out.overhead[at(i)] = each * entries[at(i)] + fixed_overhead(u, i, competing[at(i)]);
    if (i < u.prompt) continue;
    out.layerwise_peak = std::max(out.layerwise_peak, out.payload[at(i)] + out.overhead[at(i)]);
  }
  // max_l( sum of i < l after + past of l + newborns + copy of the survivors of l + sum of i > l past ).
  for (std::size_t index = 0; index < u.passes.size() && u.passes[index].end <= u.prompt; ++index) {
    const Pass pass = u.passes[index];
    const long long born = (pass.end - pass.begin) * heads;
    for (int l = 0; l < u.layers; ++l) {
      long long bytes = 0, count = 0;
      for (int i = 0; i < u.layers; ++i) {
        const Mark& m = i < l ? after[index][at(i)] : before[index][at(i)];
        bytes += m.bytes;
        count += m.entries;
      }
      const Mark& left = after[index][at(l)];
      const bool evicts = left.entries < before[index][at(l)].entries + born;
      bytes += born * u.entry_bytes() + (evicts ? left.bytes : 0) + each * (count + born) +
               fixed_overhead(u, pass.end - 1, competing[at(pass.end - 1)]);
      out.layerwise_peak = std::max(out.layerwise_peak, bytes);
    }
  }
  return out;
}

}  // namespace kvspan::twin::stores
