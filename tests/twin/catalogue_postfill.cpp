// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_postfill.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// Top-B per head.
void plain(const World& u, const Choice& c, const Moment& m, int budget, Verdict& out) {
  std::vector<int> counts(at(u.heads), budget);
  Safe safe = safe_of(u, c);
  if (c.has("lukv")) {  // which protects 4 sinks and the newest, too
    safe = {std::max(safe.sinks, 4), std::max(safe.recent, 1)};
    if (budget < m.end()) counts = lukv_counts(u, m, budget);
  }
  for (int h = 0; h < u.heads; ++h) {
    bool near = false;
    const auto score = [&](const Tokens& entries) { return score_by(u, c, m, h, entries); };
    if (c.name == "lagkv") {
      Tokens& kept = out.kept[at(h)];
      kept = lagkv(u, c, m.l, h, m.resident[at(h)], budget, near);
      std::sort(kept.begin(), kept.end());
    } else {
      out.kept[at(h)] = best(m.resident[at(h)], safe, m.end(), counts[at(h)], score, near);
    }
    out.near[at(h)] = near ? 1 : 0;
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
  if (of_prulong(c)) {
    prulong(u, m, model_layer, out);
  } else if (c.name == "simlayerkv") {
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
        // The oldest of the window is written over before a row attends.
        if (j <= b - c.count("window", 256) && u.admitted[u.flat(m.l, h, j)] == 0) {
          gone.push_back(j);
        }
      }
      out.kept[at(h)] = without(m.resident[at(h)], gone);
    }
  } else if (c.name == "locret") {
    locret(u, m, out);
  } else if (c.name == "cake") {
    cake(u, m, memory, out);
  } else if (c.name == "vase") {
    vase(u, m, memory, out);
  } else if (c.name == "caote") {
    caote(u, m, memory, out);
  } else if (c.name == "trimkv") {
    const int held = static_cast<int>(m.resident[0].size());
    if (held >= budget_of(u, c) + c.count("buffer", 128)) plain(u, c, m, budget_of(u, c), out);
  } else if (c.name == "triattention") {
    // After a step of decode that leaves `every` more than the budget.
    const int held = static_cast<int>(m.resident[0].size());
    if (b > u.point && held >= budget_of(u, c) + c.count("every", 128))
      plain(u, c, m, budget_of(u, c), out);
  } else if (c.name == "decoding") {
    decoding(u, m, due(c.count("every", 512)), memory, out);
  } else if (c.name == "foresightkv") {
    // A call leaves a flag, whether its total length is a multiple; the next one uses it.
    if (at_point || (b > u.point && m.pass.begin % c.count("interval", 128) == 0)) {
      if (c.has("feature")) {
        foresightkv(u, m, memory, out);
      } else {
        plain(u, c, m, budget_of(u, c), out);
      }
    }
  } else if (!at_point) {
    return out;
  } else if (c.name == "adakv") {
    adakv(u, m, model_layer, out);
  } else if (c.name == "global") {
    global(u, m, out);
  } else if (c.name == "kvzip") {
    kvzip(u, m, out);
  } else if (c.name == "kvcompose") {
    kvcompose(u, m, out);
  } else if (c.name == "lava") {
    lava(u, m, out);
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

Tokens residents(const World& u, const Outcome& r, int l, int h, int row) {
  Tokens out;
  for (int j = 0; j <= row; ++j) {
    if (r.death[u.flat(l, h, j)] > row) out.push_back(j);
  }
  return out;
}

// What a row reads of a stored head.
Tokens reads(const World& u, const Outcome& r, int l, int h, int row) {
  const Tokens held = residents(u, r, l, h, row);
  const std::string& name = u.policy.name;
  Tokens hidden;
  for (const int j : held) {
    if (name == "dms" && !dms_reads(u, l, h, row, j)) hidden.push_back(j);
    if (name == "write_gate" && !write_gate_reads(u, l, h, row, j)) hidden.push_back(j);
  }
  const Tokens out = without(held, hidden);
  return u.policy.has("quest.page") ? admitted_pages(u, l, h, row, out) : out;
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

// State beside K and V that a policy keeps for the whole model while `row` attends, with `entries`
// resident.
long long state_of(const World& u, const Choice& c, int row, long long entries) {
  const Trace& t = u.t;
  const long long d = t.head_dim, dv = t.v_head_dim, layers = u.layers, heads = u.heads;
  const long long queries = t.query_heads, group = u.group();
  if (c.name == "keydiff") return layers * heads * d * 4;  // the anchors
  if (c.name == "lookahead" && row == u.point - 1) {
    const long long cut = std::min(budget_of(u, c), u.point);
    return layers * heads * u.entry_bytes() * (cut + c.count("ahead", 8));
  }
  if (c.name == "qfilter") return layers * heads * d * kBytes;
  if (c.name == "triattention") return layers * queries * (d / 2) * 3 * 4;
  if (c.name == "cap") return row == u.point - 1 ? 4 * (layers * queries * d + dv * dv) : 0;
  if (c.name == "expected_attention" && row == u.point - 1) {  // means and covariances
    const bool covariance = c.is("covariance", "true", "true");
    return layers * queries * (d + (covariance ? d * d : 0)) * 4;
  }
  if (c.name == "observed_attention") return row < u.point ? 4 * entries : 0;
  if (c.name == "simlayerkv") return (layers + 7) / 8;
  if (c.name == "adakv" || c.name == "headkv" || c.name == "baklava") return 4 * layers * heads;
  if (c.name == "cake" || c.name == "lava") {  // scores of all layers; lengths of heads
    const int shown = std::max(0, u.point - c.count("window", 32));
    return (row == u.point - 1 ? layers * heads * shown * kBytes : 0) +
           (c.name == "lava" ? 4 * layers * heads : 0);
  }
  if (c.name == "kvzip" || c.name == "kvcompose") {  // scores of all layers; a pass; lengths
    long long rows = 0;
    for (const Tables::Probe& p : u.tables.probes) rows = std::max<long long>(rows, p.rows);
    const bool own =
        c.name == "kvzip" ? !c.is("cut", "head", "model") : c.is("form", "heads", "layers");
    return (row == u.point - 1 ? layers * heads * (u.point * kBytes + rows * u.entry_bytes()) : 0) +
           (own ? 4 * layers * heads : 0);
  }
  if (c.name == "trimkv") return 6 * entries;  // log beta and position
  if (c.name == "h2o") return 4 * entries;
  if (c.name == "vase") {  // the queries of its buffer
    return c.is("form", "dkv", "attnv") ? 0 : layers * c.count("buffer", 64) * queries * d * kBytes;
  }
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
  if (!c.has("inner"))
    return state_of(u, c, row, entries) + (c.has("lukv") ? 4LL * u.layers * u.heads : 0);
  const Choice p = c.inner();
  long long own = 0;
  if (c.name == "global") {
    own = u.layers * u.heads * (4LL + (row == u.point - 1 ? u.point * kBytes : 0));
  }
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
        const bool moves = u.policy.is("positions", "cache", "original");
        errors.push_back(output_error(
            t, t.layers[at(l)], g / (t.query_heads / t.kv_heads), range(0, row + 1), p, active,
            moves ? renumbered(u, l, g, row, active) : attention(u, l, g, row, active)));
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
                     whose.name == "pyramidkv" || whose.name == "lookahead";
  const char* const usual = whose.is("preset", "prulong", "none") ? "none" : "mean";
  return voted && whose.is("group", "none", usual) ? t.query_heads : t.kv_heads;
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
  World u{trace, {policy, parameters, ""}, tables, 0, 0, 0, 0, 0, {}, {}};
  u.layers = static_cast<int>(trace.layers.size());
  u.prompt = plan.prompt >= 0 ? plan.prompt : trace.prompt_tokens;
  u.point = plan.evict_point >= 0 ? plan.evict_point : u.prompt;
  require(u.prompt > 0 && u.prompt <= trace.tokens && u.point > 0 && u.point <= u.prompt,
          "wrong plan");
  u.heads = stored_heads(trace, u.policy);
  u.passes = make_passes(plan.chunk, u.point, u.prompt, trace.tokens);
  u.prefilled = plan.evict_point >= 0 ? u.point : u.prompt - 1;
  if (of_prulong(u.policy)) u.passes = make_passes(plan.chunk, u.prefilled, u.prompt, trace.tokens);
  if (policy == "locret") {
    cut_at(u.passes, (of_prulong(u.policy) ? u.prefilled : u.point) - u.policy.count("local", 100));
  }
  if (policy == "write_gate") u.admitted = write_gate(u);

  Outcome r;
  r.heads = u.heads;
  r.near.assign(at(u.layers) * at(u.heads), 0);
  r.death.assign(r.near.size() * at(trace.tokens), trace.tokens);
  replay(u, r);
  measure_bytes(u, r);
  measure_fidelity(u, r);
  if (policy == "dms" || policy == "write_gate") {
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
