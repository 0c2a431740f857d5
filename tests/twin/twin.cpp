// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/twin.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "tests/twin/parts.h"

namespace kvspan::twin {
namespace {

// All that is fixed before the replay.
struct Setup {
  const Trace& trace;
  const Spec& spec;
  int layers;  // stored layers
  int prompt;  // n
  int point;   // n': the prompt-end rules act after the pass that ends here
  int heads;   // stored heads of a layer
  int budget;  // tokens per stored head, as the policy uses it outside chunked()
  long long entry_bytes;
  std::vector<Pass> passes;
};

bool has_window(const Spec& s) { return s.name == "snapkv" || s.name == "pyramidkv"; }

// "the decode-time evictors": they also act after every pass behind n'.
bool evicts_in_decode(const Spec& s) {
  return s.name == "h2o" || s.name == "tova" || s.name == "random" ||
         (s.name == "scores" && s.at_every_pass);
}

// Entries that chunked() keeps of a chunk of c tokens under a share. A quotient of two integers is
// correctly rounded, so `s` is the double nearest to the exact decimal 1 - r.
int chunk_count(const Spec& spec, int c) {
  const Decimal percent = parse_decimal(spec.budget.decimal);
  const double s = static_cast<double>(100 * percent.scale - percent.digits) /
                   static_cast<double>(100 * percent.scale);
  const double kept = (1.0 - s) * c;
  if (!spec.metric_count) return static_cast<int>(kept);
  const int w = has_window(spec) ? spec.obs_window : 0;
  return std::min(static_cast<int>(std::nearbyint(kept)) + w, c);
}

// ---- setup ----------------------------------------------------------------------------------

int stored_heads(const Trace& t, const Spec& s) {
  const std::size_t per_head = t.layers.size() * at(t.tokens);
  int heads = t.kv_heads;
  if (s.name == "scores") heads = static_cast<int>(s.scores.size() / per_head);
  if (s.name == "deaths") heads = static_cast<int>(s.deaths.size() / per_head);
  if ((has_window(s) || s.name == "h2o") && s.group == "none") heads = t.query_heads;
  require(heads == t.kv_heads || heads == t.query_heads, "table of the wrong shape");
  return heads;
}

bool all_compete(const Spec& s) {
  if (s.compete != 0) return s.compete == 2;
  return !s.has_budget || s.budget.kind != Amount::share || evicts_in_decode(s);
}

Setup make_setup(const Trace& t, const Spec& s, const Plan& plan, int kv_bytes) {
  const char* const names[] = {"full",   "random",    "streaming_llm", "h2o",    "tova",
                               "snapkv", "pyramidkv", "duoattention",  "scores", "deaths"};
  require(std::find(std::begin(names), std::end(names), s.name) != std::end(names),
          "unknown policy");
  const int prompt = plan.prompt >= 0 ? plan.prompt : t.prompt_tokens;
  const int point = plan.evict_point >= 0 ? plan.evict_point : prompt;
  require(prompt > 0 && prompt <= t.tokens && point > 0 && point <= prompt, "wrong plan");
  const bool must = has_window(s) || s.name == "tova" || s.name == "random" || s.name == "scores";
  require(s.has_budget || !must, "the policy needs a budget");
  if (s.chunked) {
    require(must || s.name == "h2o", "chunked() needs a policy with a scorer");
    require(all_compete(s) || (s.has_budget && s.budget.kind == Amount::share),
            "frozen chunks need a share: a fixed total has no count per chunk");
    require(!s.patched || has_window(s), "patched needs an observation window");
  }
  Setup u{t,      s,     static_cast<int>(t.layers.size()),
          prompt, point, stored_heads(t, s),
          0,      0,     make_passes(plan.chunk, point, prompt, t.tokens)};
  u.entry_bytes = static_cast<long long>(t.head_dim + t.v_head_dim) * kv_bytes;
  if (s.has_budget) u.budget = budget_tokens(s.budget, point, u.layers * u.heads * u.entry_bytes);
  return u;
}

// ---- attention ------------------------------------------------------------------------------

// Tokens that a stored head holds at `row`, ascending: born, and not dead yet.
std::vector<int> residents(const Setup& u, const std::vector<int>& death, int l, int h, int row) {
  std::vector<int> out;
  for (int j = 0; j <= row; ++j) {
    if (death[flat(u.trace, u.heads, l, h, j)] > row) out.push_back(j);
  }
  return out;
}

// ---- how many stay --------------------------------------------------------------------------

// PyramidKV: entries kept ahead of the window in model layer l, for an average `capacity` per
// layer and n competing entries.  Source: KVCache-Factory's code and arXiv 2406.02069.
// REQUIRES: capacity >= w.
int pyramid_top(const Spec& s, int layers, int l, int capacity, int n, int w) {
  const int base = capacity - w;
  if (n <= capacity) return n - w;
  if (layers == 1 || n < 2 * base) return base;
  if (!s.exact_rounding) {
    int low = static_cast<int>(std::floor(base / s.beta));
    int high = 2 * base - low;
    if (high >= n - w) {
      high = n - w;
      low = 2 * base - high;
    }
    return high - l * ((high - low) / (layers - 1));
  }
  double low = base / s.beta;
  double high = 2.0 * base - low;
  if (high >= n - w) {
    high = n - w;
    low = 2.0 * base - high;
  }
  // Largest remainder. The slack makes remainders that are equal as fractions equal here too.
  const double slack = 1e-9;
  std::vector<int> kept;
  std::vector<double> remainder;
  for (int i = 0; i < layers; ++i) {
    const double k = high - (high - low) * i / (layers - 1);
    kept.push_back(static_cast<int>(std::floor(k + slack)));
    remainder.push_back(k - kept.back());
  }
  int missing = layers * base - std::accumulate(kept.begin(), kept.end(), 0);
  for (; missing > 0; --missing) {
    int best = 0;
    for (int i = 1; i < layers; ++i) {
      if (remainder[at(i)] > remainder[at(best)] + slack) best = i;
    }
    ++kept[at(best)];
    remainder[at(best)] = -1;
  }
  return kept[at(l)];
}

// One decision of a head. All its facts but the scores.
struct Rule {
  int first_key = 0;                 // the domain: resident entries from this token on
  int count = 0;                     // no-op while the domain is no larger
  int protect_from = 0;              // entries from this token on stay
  int top = 0;                       // best older entries that stay besides them
  int rows_begin = 0, rows_end = 0;  // observing queries (snapkv, pyramidkv)
  bool patched = false;              // the rows are the prompt's last ones,
  int shift = 0;                     // moved so far
};

// The rule at the end of `pass` with `resident` entries in the head; `resident` counts newborns.
// REQUIRES: the policy is one with a scorer and is due.
Rule make_rule(const Setup& u, int model_layer, Pass pass, int resident) {
  const Spec& s = u.spec;
  const int b = pass.end;
  const bool in_chunk = s.chunked && b <= u.point;
  const bool frozen = in_chunk && !all_compete(s);
  const bool patched = in_chunk && s.patched && b < u.point;
  Rule r;
  r.first_key = frozen ? pass.begin : 0;
  const int domain = frozen ? b - pass.begin : resident;

  int count = u.budget;
  if (in_chunk && s.has_budget && s.budget.kind == Amount::share) {
    count = 0;
    for (const Pass& p : u.passes) {
      if (p.end == b || (p.end < b && !frozen)) count += chunk_count(s, p.end - p.begin);
    }
  }

  if (s.name == "h2o") {
    const int heavy = s.has_budget ? count / 2 : s.heavy;
    const int recent = s.has_budget ? count - heavy : s.recent;
    r.count = heavy + recent;
    r.protect_from = b - recent;
    r.top = heavy;
  } else if (s.name == "scores") {
    const int recent = std::min(s.recent, count);
    r.count = count;
    r.protect_from = b - recent;
    r.top = count - recent;
  } else if (!has_window(s)) {  // tova, random: nothing is protected
    r.count = count;
    r.protect_from = b;
    r.top = count;
  } else {
    const int seen = in_chunk && !patched ? b - pass.begin : u.point;
    const int w = std::min(s.obs_window, seen);
    const bool pyramid = s.name == "pyramidkv";
    r.rows_end = patched ? u.point : b;
    r.rows_begin = r.rows_end - w;
    if (patched) {  // the window is made of borrowed queries, whose entries are not kept
      r.shift = b - r.rows_begin;
      r.patched = true;
      r.top = pyramid ? pyramid_top(s, u.trace.model_layers, model_layer, count + w, domain + w, w)
                      : count;
      r.count = r.top;
      r.protect_from = b;
    } else if (count <= w) {
      r.count = count;
      r.protect_from = b - (in_chunk && s.small_window ? w : count);
      r.top = 0;
    } else {
      r.top =
          pyramid ? pyramid_top(s, u.trace.model_layers, model_layer, count, domain, w) : count - w;
      r.count = r.top + w;
      r.protect_from = b - w;
    }
  }
  return r;
}

// ---- scores ---------------------------------------------------------------------------------

// Place of every token in the order of its rank, [tokens]: a double holds it exactly.
std::vector<double> random_places(const Setup& u, int model_layer, int head) {
  std::vector<std::pair<std::uint64_t, int>> ranks;
  for (int j = 0; j < u.trace.tokens; ++j) {
    std::uint64_t x = mix(mix(u.spec.seed) ^ static_cast<std::uint64_t>(model_layer));
    x = mix(mix(x ^ static_cast<std::uint64_t>(head)) ^ static_cast<std::uint64_t>(j));
    ranks.push_back({x, -j});  // of equal ranks the higher token goes first
  }
  std::sort(ranks.begin(), ranks.end());
  std::vector<double> places(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    places[at(-ranks[i].second)] = static_cast<double>(i);
  }
  return places;
}

// Per-layer state of the replay.
struct State {
  std::vector<std::vector<double>> column_sum;  // [query heads][tokens] sum of p' (h2o)
  std::vector<std::vector<double>> places;      // [heads][tokens] (random)
};

// Scores of the first `older` entries of the domain, [older].
std::vector<double> score(const Setup& u, const State& state, int l, int h, Pass pass,
                          const Rule& rule, const std::vector<int>& domain, std::size_t older) {
  const Trace& t = u.trace;
  const Spec& s = u.spec;
  const Layer& layer = t.layers[at(l)];
  const auto [first, last] = readers(t, u.heads, h);
  std::vector<double> out;
  if (s.name == "random" || s.name == "scores") {
    for (std::size_t e = 0; e < older; ++e) {
      out.push_back(s.name == "random" ? state.places[at(h)][at(domain[e])]
                                       : s.scores[flat(t, u.heads, l, h, domain[e])]);
    }
    return out;
  }
  std::vector<std::vector<double>> per_head;
  if (s.name == "tova") {  // the pass's last row, mean over all query heads of the layer
    for (int g = 0; g < t.query_heads; ++g) {
      const int row = pass.end - 1;
      per_head.push_back(softmax(t, layer, g, query(t, layer, g, row, 0), row, domain));
      per_head.back().resize(older);
    }
    return reduce(per_head, "mean");
  }
  for (int g = first; g < last; ++g) {
    std::vector<double> x(older, 0.0);
    if (s.name == "h2o") {
      for (std::size_t e = 0; e < older; ++e) x[e] = state.column_sum[at(g)][at(domain[e])];
    } else {
      for (int row = rule.rows_begin; row < rule.rows_end; ++row) {
        const std::vector<double> q = query(t, layer, g, row, rule.shift);
        std::vector<double> z = raw_logits(t, layer, g, q, row + rule.shift, domain);
        if (rule.patched) {  // patch rows stand behind the chunk with their own keys
          std::vector<int> own;
          for (int j = rule.rows_begin; j <= row; ++j) own.push_back(j);
          const auto more = raw_logits(t, layer, g, query(t, layer, g, row, 0), row, own);
          z.insert(z.end(), more.begin(), more.end());
        }
        const std::vector<double> p = softmax_of(layer, g, z);
        for (std::size_t e = 0; e < older; ++e) x[e] += p[e];
      }
      if (s.pool_then_group) x = pool(x, s.kernel, s.max_pool);
    }
    per_head.push_back(x);
  }
  if (s.name == "h2o") return reduce(per_head, s.group == "max" ? "max" : "sum");
  out = reduce(per_head, s.group);
  return s.pool_then_group ? out : pool(out, s.kernel, s.max_pool);
}

// ---- position policies ----------------------------------------------------------------------

// DuoAttention fitted on the trace: [layers][kv_heads] 1 = full. The mass outside sinks and window
// is summed itself, not as 1 - inside: a head with nothing outside scores exactly 0.
std::vector<std::vector<int>> fit_heads(const Setup& u, Result& result) {
  const Trace& t = u.trace;
  std::vector<double> outside;  // [layers * kv_heads]
  for (const Layer& layer : t.layers) {
    for (int h = 0; h < t.kv_heads; ++h) {
      const auto [first, last] = readers(t, t.kv_heads, h);
      double worst = 0;
      for (int g = first; g < last; ++g) {
        double sum = 0;
        for (int i = t.tokens / 2; i < t.tokens; ++i) {
          std::vector<int> keys(at(i + 1));
          std::iota(keys.begin(), keys.end(), 0);
          const std::vector<double> p = softmax(t, layer, g, query(t, layer, g, i, 0), i, keys);
          double out = 0, all = 0;
          for (int j = 0; j <= i; ++j) {
            all += p[at(j)];
            if (j >= u.spec.sinks && j < i - u.spec.window) out += p[at(j)];
          }
          sum += out / all;
        }
        worst = std::max(worst, sum / (t.tokens - t.tokens / 2));
      }
      outside.push_back(worst);
    }
  }
  std::vector<std::size_t> order(outside.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return outside[a] < outside[b]; });
  const auto streams = static_cast<std::size_t>(
      std::nearbyint(u.spec.sparsity * static_cast<double>(u.layers * t.kv_heads)));
  std::vector<std::vector<int>> full(at(u.layers), std::vector<int>(at(t.kv_heads), 1));
  for (std::size_t i = 0; i < std::min(streams, order.size()); ++i) {
    full[order[i] / at(t.kv_heads)][order[i] % at(t.kv_heads)] = 0;
    for (std::size_t j = streams; j < order.size(); ++j) {
      if (near_tie(outside[order[i]], outside[order[j]])) {
        result.near[order[i]] = result.near[order[j]] = 1;
      }
    }
  }
  return full;
}

// Whether a policy defined by position keeps token j after a pass that ends at b.
bool keeps(const Setup& u, const Layer& layer, bool full_head, int b, int j) {
  const Spec& s = u.spec;
  if (s.name == "streaming_llm" || (s.name == "duoattention" && !full_head)) {
    const bool sized = s.name == "streaming_llm" && s.has_budget;
    const int sinks = sized ? std::min(4, u.budget) : s.sinks;
    const int window = sized ? u.budget - sinks : s.window;
    return j < sinks || j >= b - window;
  }
  // Row b is the next to read, and reads j > b - W.
  const bool evicts = s.name == "full" && s.evict_model_window && layer.sliding_window > 0;
  return !evicts || j > b - layer.sliding_window;
}

// ---- replay ---------------------------------------------------------------------------------

bool due(const Setup& u, int b) {
  if (u.spec.name == "scores" && u.spec.at_every_pass) return true;
  if (b < u.point) return u.spec.chunked;
  return b == u.point || evicts_in_decode(u.spec);
}

// Attend, then score, then evict, pass by pass: fills result.death, near and near_count.
void replay_layer(const Setup& u, int l, const std::vector<int>& full_heads, Result& result) {
  const Trace& t = u.trace;
  const Spec& s = u.spec;
  const Layer& layer = t.layers[at(l)];
  const bool by_position =
      s.name == "full" || s.name == "streaming_llm" || s.name == "duoattention";
  const bool exact = s.name == "random" || s.name == "scores";  // no sum behind the scores
  State state;
  state.column_sum.assign(at(t.query_heads), std::vector<double>(at(t.tokens), 0.0));
  for (int h = 0; h < u.heads && s.name == "random"; ++h) {
    state.places.push_back(random_places(u, layer.model_layer, h));
  }

  for (const Pass& pass : u.passes) {
    const int b = pass.end;
    if (b == t.tokens) break;  // after the last pass nothing needs to be evicted
    for (int h = 0; h < u.heads; ++h) {
      const auto [first, last] = readers(t, u.heads, h);
      for (int i = pass.begin; i < b && s.name == "h2o"; ++i) {
        const std::vector<int> keys = residents(u, result.death, l, h, i);
        for (int g = first; g < last; ++g) {
          const std::vector<double> p = softmax(t, layer, g, query(t, layer, g, i, 0), i, keys);
          for (std::size_t e = 0; e < keys.size(); ++e) {
            state.column_sum[at(g)][at(keys[e])] += p[e];
          }
        }
      }

      std::vector<int> domain = residents(u, result.death, l, h, b - 1);
      std::vector<int> victims;
      bool near = false;
      if (by_position) {
        const bool full_head = full_heads.empty() || full_heads[at(h)] == 1;
        for (const int j : domain) {
          if (!keeps(u, layer, full_head, b, j)) victims.push_back(j);
        }
      } else if (due(u, b)) {
        const Rule rule = make_rule(u, layer.model_layer, pass, static_cast<int>(domain.size()));
        domain.erase(domain.begin(),
                     std::lower_bound(domain.begin(), domain.end(), rule.first_key));
        const auto older = static_cast<std::size_t>(
            std::lower_bound(domain.begin(), domain.end(), rule.protect_from) - domain.begin());
        if (static_cast<int>(domain.size()) > rule.count && older > 0) {
          const std::vector<double> scores = score(u, state, l, h, pass, rule, domain, older);
          for (const std::size_t e : losers(scores, rule.top, near)) victims.push_back(domain[e]);
        }
      }
      for (const int j : victims) result.death[flat(t, u.heads, l, h, j)] = b;
      if (victims.empty()) continue;
      ++result.near_count.decisions;
      if (near && !exact) {
        ++result.near_count.near_ties;
        result.near[at(l) * at(u.heads) + at(h)] = 1;
      }
    }
  }
}

// ---- measures -------------------------------------------------------------------------------

// Resident entries at every row, summed over the heads of each layer, [layers][tokens].
std::vector<std::vector<long long>> count_rows(const Setup& u, const std::vector<int>& death) {
  std::vector<std::vector<long long>> rows(at(u.layers),
                                           std::vector<long long>(at(u.trace.tokens), 0));
  for (int l = 0; l < u.layers; ++l) {
    for (int h = 0; h < u.heads; ++h) {
      for (int j = 0; j < u.trace.tokens; ++j) {
        for (int i = j; i < death[flat(u.trace, u.heads, l, h, j)]; ++i) ++rows[at(l)][at(i)];
      }
    }
  }
  return rows;
}

// State that a policy keeps besides K and V.
long long overhead_bytes(const Setup& u, long long entries) {
  if (u.spec.name == "h2o") return 4 * entries;
  if (u.spec.name == "duoattention") return (u.layers * u.trace.kv_heads + 7) / 8;
  return 0;
}

// Peak of the prefill passes when layer l compresses right after its own attention:
// max_l( SUM_{i<l} after_i + past_l + c + copy of the survivors of l + SUM_{i>l} past_i ).
long long layerwise_prefill_peak(const Setup& u, const std::vector<int>& death) {
  long long peak = 0;
  for (const Pass& pass : u.passes) {
    if (pass.end > u.prompt) break;
    std::vector<long long> past(at(u.layers), 0), after(at(u.layers), 0);
    for (int l = 0; l < u.layers; ++l) {
      for (int h = 0; h < u.heads; ++h) {
        for (int j = 0; j < pass.end; ++j) {
          const int dies = death[flat(u.trace, u.heads, l, h, j)];
          past[at(l)] += j < pass.begin && dies > pass.begin;
          after[at(l)] += dies > pass.end || dies == u.trace.tokens;
        }
      }
    }
    for (int l = 0; l < u.layers; ++l) {
      const long long own = past[at(l)] + static_cast<long long>(pass.end - pass.begin) * u.heads;
      const long long copy = after[at(l)] < own ? after[at(l)] : 0;
      long long entries = own;
      for (int i = 0; i < u.layers; ++i) {
        if (i != l) entries += i < l ? after[at(i)] : past[at(i)];
      }
      peak = std::max(peak, (entries + copy) * u.entry_bytes + overhead_bytes(u, entries));
    }
  }
  return peak;
}

void measure_memory(const Setup& u, Result& r) {
  const Trace& t = u.trace;
  const std::vector<std::vector<long long>> rows = count_rows(u, r.death);
  const long long all_heads = static_cast<long long>(u.layers) * u.heads;
  long long most = 0;
  for (int i = 0; i < t.tokens; ++i) {
    long long entries = 0;
    for (const auto& layer : rows) entries += layer[at(i)];
    const long long kv = entries * u.entry_bytes;
    const long long overhead = overhead_bytes(u, entries);
    most = std::max(most, entries);
    r.entry_rows += entries;
    r.byte_rows += kv + overhead;
    long long& phase = i < u.prompt ? r.prefill_whole : r.decode_whole;
    phase = std::max(phase, kv + overhead);
    if (kv + overhead > r.peak_total_whole) {
      r.peak_total_whole = kv + overhead;
      r.peak_kv_bytes = kv;
      r.peak_overhead = overhead;
      r.peak_row = i;
    }
  }
  r.peak_total_layerwise = std::max(layerwise_prefill_peak(u, r.death), r.decode_whole);
  r.full_entry_rows = all_heads * t.tokens * (t.tokens + 1) / 2;
  r.footprint = static_cast<double>(r.entry_rows) / static_cast<double>(r.full_entry_rows);
  r.peak_kv = static_cast<double>(most) / static_cast<double>(all_heads * t.tokens);
}

// Nearest rank: the ceil(percent / 100 * size)-th smallest.
double percentile(std::vector<double> x, std::size_t percent) {
  if (x.empty()) return kNaN;
  std::sort(x.begin(), x.end());
  const std::size_t rank = (percent * x.size() + 99) / 100;
  return x[std::max(rank, std::size_t{1}) - 1];
}

// Mass is taken without the sink logit, p' with it.
void measure_fidelity(const Setup& u, Result& r) {
  const Trace& t = u.trace;
  std::vector<double> masses, prefill, decode, errors;
  std::vector<double> lost(t.spans.size(), 0.0);
  r.row_mass.assign(at(t.tokens), 0.0);
  for (int l = 0; l < u.layers; ++l) {
    const Layer& layer = t.layers[at(l)];
    for (int g = 0; g < t.query_heads; ++g) {
      const int h = g / (t.query_heads / u.heads);
      for (int i = 0; i < t.tokens; ++i) {
        std::vector<int> all(at(i + 1));
        std::iota(all.begin(), all.end(), 0);
        const std::vector<int> active = residents(u, r.death, l, h, i);
        const std::vector<double> q = query(t, layer, g, i, 0);
        const std::vector<double> p = softmax(t, layer, g, q, i, all);
        double total = 0, kept = 0;
        for (const double x : p) total += x;
        for (const int j : active) kept += p[at(j)];
        const double mass = kept / total;
        masses.push_back(mass);
        (i < u.prompt ? prefill : decode).push_back(mass);
        r.row_mass[at(i)] += mass / (u.layers * t.query_heads);
        for (std::size_t s = 0; s < t.spans.size(); ++s) {
          if (i < t.spans[s].end) continue;
          for (int j = t.spans[s].begin; j < t.spans[s].end; ++j) {
            if (r.death[flat(t, u.heads, l, h, j)] <= i) lost[s] += p[at(j)] / total;
          }
        }
        if (layer.v.empty()) continue;
        errors.push_back(output_error(t, layer, g / (t.query_heads / t.kv_heads), all, p, active,
                                      softmax(t, layer, g, q, i, active)));
      }
    }
  }
  r.mass_all_mean = mean(masses);
  r.mass_all_p5 = percentile(masses, 5);
  r.mass_all_min = percentile(masses, 0);
  r.mass_prefill_mean = mean(prefill);
  r.mass_decode_mean = mean(decode);
  r.mass_decode_min = percentile(decode, 0);
  r.error_all_mean = mean(errors);
  r.error_all_max = percentile(errors, 100);
  r.error_all_p95 = percentile(errors, 95);

  for (std::size_t s = 0; s < t.spans.size(); ++s) {
    const auto [name, begin, end] = t.spans[s];
    long long alive = 0;
    for (int l = 0; l < u.layers; ++l) {
      for (int h = 0; h < u.heads; ++h) {
        for (int j = begin; j < end; ++j) {
          alive += r.death[flat(t, u.heads, l, h, j)] == t.tokens;
        }
      }
    }
    const double entries = static_cast<double>(u.layers) * u.heads * (end - begin);
    const double rows = static_cast<double>(u.layers) * t.query_heads * (t.tokens - end);
    r.span_resident.push_back(entries > 0 ? static_cast<double>(alive) / entries : 0);
    r.span_mass_lost.push_back(rows > 0 ? lost[s] / rows : 0);
  }
}

// Entries that some query head of a stored head reads, summed over rows: the residents inside the
// model's window.
long long count_reads(const Setup& u, const std::vector<int>& death) {
  long long reads = 0;
  for (int l = 0; l < u.layers; ++l) {
    const int window = u.trace.layers[at(l)].sliding_window;
    for (int h = 0; h < u.heads; ++h) {
      for (int j = 0; j < u.trace.tokens; ++j) {
        const int dies = death[flat(u.trace, u.heads, l, h, j)];
        reads += window > 0 ? std::min(dies - j, window) : dies - j;
      }
    }
  }
  return reads;
}

}  // namespace

Result simulate(const Trace& trace, const Spec& spec, const Plan& plan, int kv_bytes) {
  const Setup u = make_setup(trace, spec, plan, kv_bytes);
  Result r;
  r.heads = u.heads;
  r.near.assign(at(u.layers) * at(u.heads), 0);
  r.death.assign(r.near.size() * at(trace.tokens), trace.tokens);
  if (spec.name == "deaths") {
    require(spec.deaths.size() == r.death.size(), "deaths of the wrong shape");
    r.death = spec.deaths;
  } else {
    require(spec.name != "scores" || spec.scores.size() == r.death.size(),
            "scores of the wrong shape");
    std::vector<std::vector<int>> full(at(u.layers));
    if (spec.name == "duoattention") {
      full = spec.full_heads.empty() ? fit_heads(u, r) : spec.full_heads;
      require(full.size() == trace.layers.size(), "full_heads of the wrong shape");
      for (const auto& row : full) {
        require(row.size() == at(trace.kv_heads), "full_heads of the wrong shape");
      }
    }
    for (int l = 0; l < u.layers; ++l) replay_layer(u, l, full[at(l)], r);
  }
  measure_memory(u, r);
  measure_fidelity(u, r);
  r.entries_read = count_reads(u, r.death);
  return r;
}

}  // namespace kvspan::twin
