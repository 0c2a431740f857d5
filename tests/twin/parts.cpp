// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/parts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace kvspan::twin {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

Decimal parse_decimal(const std::string& text) {
  Decimal d;
  bool point = false;
  require(!text.empty(), "a share needs its decimal text");
  for (const char c : text) {
    if (c == '.' && !point) {
      point = true;
      continue;
    }
    require(c >= '0' && c <= '9', "not a decimal number");
    d.digits = 10 * d.digits + (c - '0');
    if (point) d.scale *= 10;
  }
  return d;
}

int budget_tokens(const Amount& amount, int point, long long bytes_per_token) {
  if (amount.kind == Amount::tokens) return static_cast<int>(amount.value);
  if (amount.kind == Amount::bytes) {
    return static_cast<int>(static_cast<long long>(amount.value) / bytes_per_token);
  }
  const Decimal percent = parse_decimal(amount.decimal);
  return static_cast<int>(std::max(1LL, percent.digits * point / (100 * percent.scale)));
}

std::vector<Pass> make_passes(int chunk, int point, int prompt, int tokens) {
  std::vector<Pass> passes;
  const int step = chunk > 0 ? chunk : point;
  for (int a = 0; a < point; a += step) passes.push_back({a, std::min(a + step, point)});
  if (point < prompt) passes.push_back({point, prompt});
  for (int a = prompt; a < tokens; ++a) passes.push_back({a, a + 1});
  return passes;
}

Readers readers(const Trace& t, int heads, int head) {
  const int group = t.query_heads / heads;
  return {head * group, (head + 1) * group};
}

void turn(const Rope& rope, int head_dim, double positions, std::vector<double>& x) {
  if (!rope.present || positions == 0) return;
  const int dim = rope.dim > 0 ? rope.dim : head_dim;
  for (int i = 0; i < dim / 2; ++i) {
    const double angle = positions * std::pow(rope.theta, -2.0 * i / dim);
    double& re = x[at(rope.interleaved ? 2 * i : i)];
    double& im = x[at(rope.interleaved ? 2 * i + 1 : i + dim / 2)];
    const double turned = re * std::cos(angle) - im * std::sin(angle);
    im = im * std::cos(angle) + re * std::sin(angle);
    re = turned;
  }
}

std::vector<double> query(const Trace& t, const Layer& layer, int head, int row, int shift) {
  const auto first = (at(row) * at(t.query_heads) + at(head)) * at(t.head_dim);
  std::vector<double> x(layer.q.data() + first, layer.q.data() + first + t.head_dim);
  turn(t.rope, t.head_dim, shift, x);
  return x;
}

std::vector<double> raw_logits(const Trace& t, const Layer& layer, int head,
                               const std::vector<double>& q, int position,
                               const std::vector<int>& keys) {
  const int kv_head = head / (t.query_heads / t.kv_heads);
  std::vector<double> out(keys.size(), -kInfinity);
  for (std::size_t e = 0; e < keys.size(); ++e) {
    const int j = keys[e];
    if (j > position) continue;
    if (layer.sliding_window > 0 && j <= position - layer.sliding_window) continue;
    const double* k = layer.k.data() + (at(j) * at(t.kv_heads) + at(kv_head)) * at(t.head_dim);
    double z = 0;
    for (int i = 0; i < t.head_dim; ++i) z += q[at(i)] * k[i];
    z *= t.score_scale;
    out[e] = t.softcap > 0 ? t.softcap * std::tanh(z / t.softcap) : z;
  }
  return out;
}

std::vector<double> softmax_of(const Layer& layer, int head, std::vector<double> z) {
  const bool sink = !layer.sink_logits.empty();
  double top = sink ? layer.sink_logits[at(head)] : -kInfinity;
  for (const double x : z) top = std::max(top, x);
  if (top == -kInfinity) return std::vector<double>(z.size(), 0.0);
  double sum = sink ? std::exp(layer.sink_logits[at(head)] - top) : 0.0;
  for (double& x : z) sum += (x = std::exp(x - top));
  for (double& x : z) x /= sum;
  return z;
}

std::vector<double> softmax(const Trace& t, const Layer& layer, int head,
                            const std::vector<double>& q, int position,
                            const std::vector<int>& keys) {
  return softmax_of(layer, head, raw_logits(t, layer, head, q, position, keys));
}

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

std::uint64_t chain(std::uint64_t seed, std::initializer_list<std::int64_t> keys) {
  std::uint64_t x = mix(seed);
  for (const std::int64_t key : keys) x = mix(x ^ static_cast<std::uint64_t>(key));
  return x;
}

double uniform(std::uint64_t seed, std::initializer_list<std::int64_t> keys) {
  return (static_cast<double>(chain(seed, keys) >> 12) + 0.5) / 4503599627370496.0;
}

std::vector<double> pool(const std::vector<double>& x, int kernel, bool max) {
  const int size = static_cast<int>(x.size());
  std::vector<double> out;
  for (int i = 0; i < size; ++i) {
    double sum = 0, top = -kInfinity;
    for (int j = i - kernel / 2; j < i - kernel / 2 + kernel; ++j) {
      if (j < 0 || j >= size) continue;
      sum += x[at(j)];
      top = std::max(top, x[at(j)]);
    }
    out.push_back(max ? top : sum / kernel);
  }
  return out;
}

std::vector<double> reduce(const std::vector<std::vector<double>>& x, const std::string& group) {
  std::vector<double> out = x.front();
  for (std::size_t g = 1; g < x.size(); ++g) {
    for (std::size_t e = 0; e < out.size(); ++e) {
      out[e] = group == "max" ? std::max(out[e], x[g][e]) : out[e] + x[g][e];
    }
  }
  if (group == "mean") {
    for (double& o : out) o /= static_cast<double>(x.size());
  }
  return out;
}

bool near_tie(double a, double b) {
  return a != b && std::abs(a - b) <= 1e-5 * std::max(std::abs(a), std::abs(b));
}

std::vector<std::size_t> losers(const std::vector<double>& scores, int top, bool& near) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  const std::size_t cut = std::min(at(std::max(top, 0)), order.size());
  near = false;
  if (cut > 0 && cut < order.size()) {
    // Not only the pair at the cut: it may be an exact tie next to a third score.
    for (std::size_t i = 0; i < cut; ++i) near |= near_tie(scores[order[i]], scores[order[cut]]);
    for (std::size_t i = cut; i < order.size(); ++i) {
      near |= near_tie(scores[order[cut - 1]], scores[order[i]]);
    }
  }
  return {order.begin() + static_cast<std::ptrdiff_t>(cut), order.end()};
}

double mean(const std::vector<double>& x) {
  if (x.empty()) return kNaN;
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double output_error(const Trace& t, const Layer& layer, int kv_head, const std::vector<int>& all,
                    const std::vector<double>& p_all, const std::vector<int>& active,
                    const std::vector<double>& p_active) {
  double difference = 0, norm = 0;
  for (int x = 0; x < t.v_head_dim; ++x) {
    const auto value = [&](int j) {
      return layer.v[(at(j) * at(t.kv_heads) + at(kv_head)) * at(t.v_head_dim) + at(x)];
    };
    double full = 0, kept = 0;
    for (std::size_t e = 0; e < all.size(); ++e) full += p_all[e] * value(all[e]);
    for (std::size_t e = 0; e < active.size(); ++e) kept += p_active[e] * value(active[e]);
    difference += (kept - full) * (kept - full);
    norm += full * full;
  }
  if (difference == 0) return 0;
  return std::sqrt(difference) / std::sqrt(norm);
}

}  // namespace kvspan::twin
