// SPDX-License-Identifier: Apache-2.0
// Twins of what judges entries one by one: dms, write_gate and locret.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {

Tokens failing(const World& u, int l, int h, const Tokens& entries, int row) {
  const bool code = u.policy.is("variant", "code", "code");
  const int window = u.policy.count("window", code ? 512 : 128);
  const double threshold = u.policy.real("threshold", 0);
  Tokens out;
  if (u.t.layers[at(l)].model_layer < u.policy.inner().count("skip", 0)) return out;
  const Moment m{l, {}, {}};
  for (const int j : entries) {
    if (j + window + (code ? 0 : 1) > row) continue;
    const double score = score_by(u, u.policy.inner(), m, h, {code ? j + 1 : j}).front();
    if (score < threshold) out.push_back(j);
  }
  return out;
}

void dms(const World& u, const Moment& m, Verdict& out) {
  for (int h = 0; h < u.heads; ++h) {
    const Tokens gone = failing(u, m.l, h, m.resident[at(h)], m.end());
    out.kept[at(h)] = without(m.resident[at(h)], gone);
  }
}

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

}  // namespace kvspan::twin::postfill
