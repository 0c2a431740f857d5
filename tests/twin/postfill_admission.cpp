// SPDX-License-Identifier: Apache-2.0
// Twins of what judges entries one by one: dms, write_gate (and its pages) and locret.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {

namespace {

// variant=code: the flag of token i is given by token i + 1; near: it hangs on a near tie.
bool dms_dies(const World& u, int l, int h, int token, bool& near) {
  const Choice p = u.policy.inner();
  const bool code = u.policy.is("variant", "code", "code");
  if (code && token + 1 >= u.t.tokens) return false;
  const int head = u.policy.is("per", "layer", "head") ? 0 : h;
  const Values score =
      score_by(u, p, Moment{l, {0, token + 1}, {}}, head, {token + (code ? 1 : 0)});
  const double threshold = u.policy.real("threshold", 0);
  near = near || near_tie(score[0], threshold);
  return score[0] < threshold;
}

}  // namespace

// A flagged token lives for `window` rows, its own among them (variant=code), or one more.
void dms(const World& u, const Moment& m, Verdict& out) {
  const bool code = u.policy.is("variant", "code", "code");
  const int window = u.policy.count("window", code ? 512 : 128);
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    Tokens gone;
    for (const int j : m.resident[at(h)]) {
      if (j + window + (code ? 0 : 1) > m.end()) continue;
      if (dms_dies(u, m.l, h, j, near)) gone.push_back(j);
    }
    if (near) out.near[at(h)] = 1;
    out.kept[at(h)] = without(m.resident[at(h)], gone);
  }
}

bool dms_reads(const World& u, int l, int h, int row, int token) {
  bool near = false;
  if (row >= u.point || !u.policy.is("variant", "code", "code")) return true;
  if (u.t.layers[at(l)].model_layer < u.policy.inner().count("skip", 0)) return true;
  return row < token + u.policy.count("window", 512) || !dms_dies(u, l, h, token, near);
}

bool write_gate_reads(const World& u, int l, int h, int row, int token) {
  const Choice& c = u.policy;
  if (row >= u.point || c.is("masks_prefill", "false", "true")) return true;
  const int begin = c.is("mask", "kernel", "row") ? row / 64 * 64 : row;
  return token > begin - c.count("window", 256) || u.admitted[u.flat(l, h, token)] != 0;
}

Tokens admitted_pages(const World& u, int l, int h, int row, const Tokens& held) {
  const Choice& c = u.policy;
  const int page = c.count("quest.page", 16), window = c.count("window", 256);
  if (row < u.prompt || u.t.layers[at(l)].model_layer < c.count("quest.skip", 2)) return held;
  Tokens out, older;
  for (const int j : held) (j > row - window ? out : older).push_back(j);
  const int local = static_cast<int>(out.size()), count = static_cast<int>(older.size());
  const int tokens = std::max(c.count("quest.budget", 0), c.count("quest.least", 3) * page);
  const int full = count / page;
  int places = std::min((std::max(tokens - local, 0) + page - 1) / page, (count + page - 1) / page);
  if (places > 0 && count % page > 0) {  // the open page
    --places;
    out.insert(out.end(), older.begin() + full * page, older.end());
  }
  std::vector<std::pair<double, int>> bounds;
  for (int p = 0; p < full; ++p) {
    double top = -kInfinity;
    const auto [first, last] = readers(u.t, u.heads, h);
    for (int g = first; g < last; ++g) {
      const Values q = query(u.t, u.t.layers[at(l)], g, row, 0);
      double bound = 0;
      for (int i = 0; i < u.t.head_dim; ++i) {
        double low = kInfinity, high = -kInfinity;
        for (int e = p * page; e < (p + 1) * page; ++e) {
          const double key = key_of(u, l, u.kv_head(h), older[at(e)])[i];
          low = std::min(low, key);
          high = std::max(high, key);
        }
        bound += q[at(i)] * (q[at(i)] >= 0 ? high : low);
      }
      top = std::max(top, bound);
    }
    bounds.push_back({top, p});
  }
  std::stable_sort(bounds.begin(), bounds.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (int i = 0; i < std::min(places, full); ++i) {
    const auto begin = older.begin() + bounds[at(i)].second * page;
    out.insert(out.end(), begin, begin + page);
  }
  std::sort(out.begin(), out.end());
  return out;
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
  const int budget = budget_of(u, c);
  int stabilizers = c.count("stabilizers", 2500);
  if (!c.has("stabilizers")) stabilizers = std::min(stabilizers, budget / 2);
  for (int h = 0; h < u.heads; ++h) {
    out.kept[at(h)] = by_table(u, m, h, b < last ? stabilizers : 0, budget, out);
  }
}

Tokens by_table(const World& u, const Moment& m, int h, int newest, int budget, Verdict& out) {
  bool near = false;
  const auto score = [&](const Tokens& entries) {
    Values x;
    for (const int j : entries) x.push_back(u.tables.scores[u.flat(m.l, h, j)]);
    return x;
  };
  const Tokens kept = best(m.resident[at(h)], {0, newest}, m.end(), budget, score, near);
  if (near) out.near[at(h)] = 1;
  return kept;
}

}  // namespace kvspan::twin::postfill
