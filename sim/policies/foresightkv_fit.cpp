// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/foresightkv_fit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr std::size_t kUnits = 16;  // of the published network

// The means themselves.
Blocks block_means(const Trace& trace, int layer, RowIndex origin, RowIndex end,
                   RowIndex interval) {
  const TraceMeta& m = trace.meta();
  const int group = m.query_heads / m.kv_heads;
  const auto blocks = index((std::max<RowIndex>(end - origin, 0) + interval - 1) / interval);
  Blocks out(blocks);
  for (auto& block : out) block.assign(index(m.kv_heads), std::vector<float>(index(end), 0.0F));
  std::vector<std::vector<double>> sums(index(m.kv_heads), std::vector<double>(index(end), 0.0));
  const auto store = [&](std::size_t block) {
    for (std::size_t h = 0; h < sums.size(); ++h) {
      for (std::size_t i = 0; i < sums[h].size(); ++i)
        out[block][h][i] = static_cast<float>(sums[h][i] / static_cast<double>(interval * group));
      std::fill(sums[h].begin(), sums[h].end(), 0.0);
    }
  };
  for_each_row(trace, layer, origin, end, [&](int q, RowIndex row, const RowTerms& terms) {
    const double sum = terms.sum + terms.sink;
    if (sum > 0) {
      auto& into = sums[index(q / group)];
      for (RowIndex i = 0; i <= row; ++i)
        into[index(i)] += static_cast<double>(terms.terms[i]) / sum;
    }
    const bool last = row + 1 == end || (row + 1 - origin) % interval == 0;
    if (last && q == m.query_heads - 1) store(index((row - origin) / interval));
  });
  return out;
}

// A decision of Golden Eviction.
struct Choice {
  RowIndex row = 0;
  std::vector<TokenIndex> candidates;
  std::vector<char> drops;   // [candidates]
  std::vector<float> label;  // [candidates]
};

// The decisions of one KV head over rows [0, end).
std::vector<Choice> golden_choices(const Blocks& future, std::size_t head, RowIndex end,
                                   RowIndex interval, TokenCount budget) {
  std::vector<Choice> out;
  std::vector<TokenIndex> list;
  const RowIndex first = (budget + interval + interval - 1) / interval * interval;
  TokenIndex born = 0;
  for (RowIndex t = first; t < end; t += interval) {
    for (; born < t; ++born) list.push_back(born);
    const std::size_t block = index(t / interval);
    if (block >= future.size()) break;
    const auto drop = index(static_cast<TokenCount>(list.size()) - budget);
    const std::size_t candidates =
        index(std::lower_bound(list.begin(), list.end(), t - interval) - list.begin());
    const std::span<const TokenIndex> c(list.data(), candidates);
    std::vector<std::size_t> order(candidates);
    for (std::size_t i = 0; i < candidates; ++i) order[i] = i;
    std::vector<float> label;
    for (const TokenIndex token : c) label.push_back(future[block][head][index(token)]);
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return label[a] != label[b] ? label[a] < label[b] : a > b;
    });
    std::vector<char> drops(candidates, 0);
    for (std::size_t i = 0; i < std::min(drop, candidates); ++i) drops[order[i]] = 1;
    out.push_back({t, {c.begin(), c.end()}, drops, label});
    std::vector<TokenIndex> left;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i >= candidates || drops[i] == 0) left.push_back(list[i]);
    }
    list = std::move(left);
  }
  return out;
}

std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const std::size_t group = index(m.query_heads / m.kv_heads);
  // An interval and a budget that leave decisions in a short text.
  const RowIndex interval =
      std::clamp<RowIndex>(options.interval, 1, std::max<RowIndex>(1, end / 4));
  const TokenCount budget =
      std::clamp<TokenCount>(options.budget, 1, std::max<RowIndex>(1, end / 2));
  const Blocks future = largest_block_means(trace, layer, 0, end, interval);
  std::vector<std::vector<Choice>> golden;  // the same rows for all heads
  std::vector<std::vector<char>> alive(index(m.kv_heads), std::vector<char>(index(end), 1));
  std::vector<Samples> out(index(m.kv_heads));
  const std::size_t vectors = options.attention_only ? 0 : index(m.head_dim + m.v_head_dim);
  for (int h = 0; h < m.kv_heads; ++h) {
    golden.push_back(golden_choices(future, index(h), end, interval, budget));
    out[index(h)].width = kStats * group + vectors;
  }
  if (golden.empty() || golden.front().empty()) return out;
  const LayerVectors k = read_vectors(trace, layer, 'k', 0, end);
  const LayerVectors v = vectors == 0 ? LayerVectors{} : read_vectors(trace, layer, 'v', 0, end);
  const std::vector<Choice>& choices = golden.front();
  std::vector<IntervalStats> stats(index(m.query_heads), IntervalStats(index(end), interval));
  const std::vector<float> none(index(end), 0.0F);
  std::vector<RunningSums> sums(index(m.query_heads), {none, none});
  std::size_t next = 0;
  const auto decide = [&] {
    const RowIndex t = choices[next].row;
    for (std::size_t q = 0; q < sums.size(); ++q) {
      for (std::size_t i = 0; i < index(t); ++i) sums[q].add(i, stats[q].values[2][i]);
    }
    for (std::size_t h = 0; h < golden.size(); ++h) {
      const Choice& g = golden[h][next];
      for (std::size_t c = 0; c < g.candidates.size(); ++c) {
        const TokenIndex token = g.candidates[c];
        if (g.drops[c] != 0) alive[h][index(token)] = 0;
        if (t < from) continue;
        Samples& s = out[h];
        for (std::size_t f = 0; f < kStats; ++f) {
          for (std::size_t q = h * group; q < (h + 1) * group; ++q) {
            s.x.push_back(f < 6    ? stats[q].values[f][index(token)]
                          : f == 6 ? sums[q].plain[index(token)]
                                   : sums[q].decayed[index(token)]);
          }
        }
        if (vectors > 0) {
          for (const auto& part :
               {k.at(token, static_cast<int>(h)), v.at(token, static_cast<int>(h))})
            s.x.insert(s.x.end(), part.begin(), part.end());
        }
        const auto label = static_cast<double>(g.label[c]);
        s.y.push_back(options.method == "logit" ? (g.drops[c] != 0 ? 1.0 : 0.0)
                                                : -std::log(label + 1e-6));
        s.decision.push_back(static_cast<std::int32_t>(next));
      }
    }
    stats.assign(stats.size(), IntervalStats(index(end), interval));
    ++next;
  };
  for_each_row(trace, layer, 0, choices.back().row,
               [&](int q, RowIndex row, const RowTerms& terms) {
                 const auto& readable = alive[index(q) / group];
                 double sum = terms.sink;
                 for (RowIndex i = 0; i <= row; ++i) {
                   if (readable[index(i)] != 0) sum += static_cast<double>(terms.terms[i]);
                 }
                 const RowIndex left = choices[next].row - row;
                 for (RowIndex i = 0; i <= row && sum > 0; ++i) {
                   if (readable[index(i)] == 0) continue;
                   const double p = static_cast<double>(terms.terms[i]) / sum;
                   stats[index(q)].add(index(i), static_cast<float>(p), left);
                 }
                 if (row + 1 == choices[next].row && q == m.query_heads - 1) decide();
               });
  return out;
}

}  // namespace

Blocks largest_block_means(const Trace& trace, int layer, RowIndex origin, RowIndex end,
                           RowIndex interval) {
  Blocks means = block_means(trace, layer, origin, end, interval);
  for (std::size_t b = means.size(); b-- > 1;) {
    for (std::size_t h = 0; h < means[b].size(); ++h) {
      for (std::size_t i = 0; i < means[b][h].size(); ++i)
        means[b - 1][h][i] = std::max(means[b - 1][h][i], means[b][h][i]);
    }
  }
  return means;
}

FittedScorer foresightkv_fit() {
  FittedScorer out;
  out.name = "foresightkv";
  out.features = "8 statistics of attention over an interval for each query head; k; v";
  out.label = "largest future block mean on the golden trajectory (logit: golden drops it)";
  out.methods = {"ridge", "logit", "mlp"};
  out.gather = gather;
  out.fit = [](const Samples& samples, const FitOptions& o) {
    if (o.method == "ridge") return fit_ridge(samples, o.lambda);
    if (o.method == "mlp")
      return fit_mlp(samples, {.hidden = kUnits, .steps = o.steps, .seed = o.seed});
    // Classes weigh the same: (B - I) / I with the rows that there are.
    const auto ones = static_cast<double>(std::count(samples.y.begin(), samples.y.end(), 1.0));
    const double others = static_cast<double>(samples.rows()) - ones;
    return fit_logit(samples, o.lambda, ones > 0 && others > 0 ? others / ones : 1);
  };
  out.quality = [](const Regressor& model, const Samples& samples, const auto&...) {
    return agreement(model, samples);
  };
  return out;
}

}  // namespace kvspan::policies
