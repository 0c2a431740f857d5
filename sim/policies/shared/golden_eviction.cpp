// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/golden_eviction.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

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

std::vector<char> dropped(const std::vector<float>& label, std::size_t count) {
  std::vector<std::size_t> order(label.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return label[a] != label[b] ? label[a] < label[b] : a > b;
  });
  std::vector<char> drops(label.size(), 0);
  for (std::size_t i = 0; i < std::min(count, label.size()); ++i) drops[order[i]] = 1;
  return drops;
}

std::vector<GoldenChoice> golden_choices(const Blocks& future, std::size_t head, RowIndex end,
                                         RowIndex interval, TokenCount budget) {
  std::vector<GoldenChoice> out;
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
    std::vector<float> label;
    for (const TokenIndex token : c) label.push_back(future[block][head][index(token)]);
    const std::vector<char> drops = dropped(label, drop);
    out.push_back({t, {c.begin(), c.end()}, drops, label});
    std::vector<TokenIndex> left;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i >= candidates || drops[i] == 0) left.push_back(list[i]);
    }
    list = std::move(left);
  }
  return out;
}

std::vector<RowIndex> prompt_ends(RowIndex end, RowIndex interval) {
  const RowIndex most = (end - 1) / interval;  // intervals; at least two, or nobody is a candidate
  const RowIndex taken = std::min<RowIndex>(most - 1, 6);
  std::vector<RowIndex> out;
  for (RowIndex i = 1; i <= taken; ++i) out.push_back((1 + i * (most - 1) / taken) * interval);
  return out;
}

GoldenChoice first_choice(const Blocks& future, std::size_t head, RowIndex row, RowIndex end,
                          RowIndex interval, TokenCount budget) {
  const std::vector<float>& means = future[index(row / interval)][head];
  const RowIndex candidates = row - interval;
  const RowIndex kept =
      candidates * std::max<RowIndex>(0, budget - interval) / std::max<RowIndex>(1, end - interval);
  GoldenChoice out;
  out.row = row;
  out.candidates.resize(index(candidates));
  std::iota(out.candidates.begin(), out.candidates.end(), TokenIndex{0});
  out.label.assign(means.begin(), means.begin() + candidates);
  out.drops = dropped(out.label, index(candidates - std::min(kept, candidates)));
  return out;
}

}  // namespace kvspan::policies
