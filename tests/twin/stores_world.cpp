// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/stores_world.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin::stores {

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

Setup make_setup(const Trace& t, const std::string& policy, const Parameters& p, const Plan& plan) {
  const int prompt = plan.prompt > 0 ? plan.prompt : t.prompt_tokens;
  const int point = plan.evict_point > 0 ? plan.evict_point : prompt;
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

double rounded(double x, double slack, long long& near) {
  const double distance = std::abs(x - std::floor(x) - 0.5);
  if (distance > 0 && distance < slack) ++near;
  return std::nearbyint(x);
}

double to_half(double x, long long& near, double error) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent - 11, -24));
  return rounded(x / quantum, std::max(1e-3, error / quantum), near) * quantum;
}

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
  if (store == "turboquant") return turbo_bytes(*this);
  if (store == "think") {
    const int pruned = floor_of(parse_share(text("think.ratio", "40%")), d);
    return static_cast<long long>(d - pruned + dv) * kElement;
  }
  return entry_bytes();
}

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
    r.output.push_back(b);
    difference += (a - b) * (a - b);
    norm += a * a;
  }
  r.error = difference == 0 ? 0 : std::sqrt(difference) / std::sqrt(norm);
  return r;
}

}  // namespace kvspan::twin::stores
