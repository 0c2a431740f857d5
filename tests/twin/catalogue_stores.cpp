// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_stores.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tests/twin/stores_rules.h"

namespace kvspan::twin::stores {
namespace {

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
  const bool sums = u.store == "cam" && u.text("cam.attention", "row") == "sums";
  const bool h2o = u.evictor == "h2o" || (u.evictor.empty() && u.store == "less");
  return (h2o ? 4 : 0) + (sums ? 4 : 0);
}

}  // namespace

void end_pass(const Setup& u, LayerState& s, Pass pass, const std::vector<int>& given,
              Outcome& out) {
  std::vector<std::vector<int>> lost(at(u.heads));
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    lost[at(h)] = victims(u, s, h, pass, given, near);
    if (lost[at(h)].empty()) continue;
    ++out.decisions;
    if (near) {
      ++out.near_ties;
      out.near[at(s.index * u.heads + h)] = 1;
    }
    if (u.store == "mikv") continue;
    if (u.store == "cam") fold_cam(u, s, h, pass, lost[at(h)], out);
    if (u.store == "merge") fold_merge(u, s, h, pass.end, lost[at(h)], out);
    for (const int j : lost[at(h)]) {
      s.entries[at(h)][at(j)].alive = false;
      out.death[flat(u.trace, u.heads, s.index, h, j)] = pass.end;
    }
  }
  if (u.store == "kivi") age_kivi(u, s, pass.end, out);
  if (u.store == "qpruningkv") age_qpruningkv(u, s, pass.end, out);
  if (u.store == "think") age_think(u, s, pass.end, out);
  if (u.store == "mikv") age_mikv(u, s, pass.end, lost, out);
  if (u.store == "less") age_less(u, s, lost, out);
  if (u.store == "kvquant") age_kvquant(u, s, pass, out);
  if (u.store == "turboquant") age_turboquant(u, s, pass.end, out);
}

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
    s.last_row = s.column_sum;
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
          s.last_row[at(g)] = r.own;
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
      end_pass(u, s, pass, given, out);
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
  // max_l( sum of i < l after + past of l + newborns + copy of the survivors of l + sum of i > l
  // past ).
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
