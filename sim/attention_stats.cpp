// SPDX-License-Identifier: Apache-2.0
#include "sim/attention_stats.h"

#include <algorithm>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/error.h"
#include "sim/kernels/kernels.h"
#include "sim/score_block.h"

namespace kvspan {
namespace {

constexpr RowIndex kBlockRows = 16;

// Sum over rows [begin, tokens) of the probability outside sinks and window, of one KV head's group.
void add_outside(const LayerScores& scores, const TraceMeta& meta, int kv_head, std::int64_t sinks,
                 std::int64_t window, RowIndex begin, std::vector<double>& out) {
  const int group = meta.query_heads / meta.kv_heads;
  const auto keys = static_cast<std::size_t>(kernels::padded(meta.tokens));
  std::vector<float> buffer(static_cast<std::size_t>(group * kBlockRows) * keys);
  for (RowIndex row = begin; row < meta.tokens; row += kBlockRows) {
    const LayerScores::Block block{row, std::min(row + kBlockRows, meta.tokens), 0};
    const auto rows = static_cast<std::size_t>(block.end - block.begin);
    std::vector<float*> pointers;
    for (std::size_t i = 0; i < static_cast<std::size_t>(group) * rows; ++i)
      pointers.push_back(buffer.data() + i * keys);
    std::vector<RowTerms> info(pointers.size());
    scores.compute(kv_head, {block.begin, block.end, kernels::padded(block.end)}, pointers, info);
    for (std::size_t i = 0; i < info.size(); ++i) {
      const RowIndex r = row + static_cast<RowIndex>(i % rows);
      double outside = 0;
      for (RowIndex j = sinks; j < r - window; ++j)
        outside += static_cast<double>(info[i].terms[j]);
      out[static_cast<std::size_t>(kv_head * group) + i / rows] += outside / info[i].sum;
    }
  }
}

}  // namespace

void for_each_row(const Trace& trace, int layer, RowIndex begin, RowIndex end,
                  const std::function<void(int, RowIndex, const RowTerms&)>& use) {
  const LayerScores scores(trace, layer, false);
  const TraceMeta& meta = trace.meta();
  const int group = meta.query_heads / meta.kv_heads;
  const auto keys = static_cast<std::size_t>(kernels::padded(meta.tokens));
  std::vector<float> buffer(static_cast<std::size_t>(meta.query_heads * kBlockRows) * keys);
  for (RowIndex row = begin; row < end; row += kBlockRows) {
    const RowIndex last = std::min(row + kBlockRows, end);
    const auto rows = static_cast<std::size_t>(last - row);
    std::vector<RowTerms> info(static_cast<std::size_t>(meta.query_heads) * rows);
    for (int h = 0; h < meta.kv_heads; ++h) {
      const std::size_t first = static_cast<std::size_t>(h * group) * rows;
      std::vector<float*> pointers;
      for (std::size_t i = 0; i < static_cast<std::size_t>(group) * rows; ++i)
        pointers.push_back(buffer.data() + (first + i) * keys);
      scores.compute(h, {row, last, kernels::padded(last)}, pointers,
                     std::span(info).subspan(first, static_cast<std::size_t>(group) * rows));
    }
    for (RowIndex r = row; r < last; ++r) {
      if (!scores.has_row(r)) {
        throw TraceError(
            fmt::format("{}: rows {} to {} are needed, and layers.{}.scores.rows lacks {}",
                        trace.name(), begin, end - 1, layer, r));
      }
      for (int q = 0; q < meta.query_heads; ++q)
        use(q, r, info[static_cast<std::size_t>(q) * rows + static_cast<std::size_t>(r - row)]);
    }
  }
}

std::vector<std::vector<double>> mean_mass_outside(const Trace& trace, std::int64_t sinks,
                                                   std::int64_t window) {
  const TraceMeta& meta = trace.meta();
  const RowIndex begin = meta.tokens / 2;
  std::vector<std::vector<double>> out;
  for (int layer = 0; layer < meta.layers; ++layer) {
    const LayerScores scores(trace, layer, false);
    for (RowIndex row = begin; row < meta.tokens; ++row) {
      if (scores.has_row(row)) continue;
      throw TraceError(fmt::format(
          "{}: fitting heads needs rows {} to {}, and layers.{}.scores.rows lacks row {}",
          trace.name(), begin, meta.tokens - 1, layer, row));
    }
    out.emplace_back(static_cast<std::size_t>(meta.query_heads), 0.0);
    std::vector<double>& sums = out.back();
    tbb::parallel_for(0, meta.kv_heads, [&](int kv_head) {
      add_outside(scores, meta, kv_head, sinks, window, begin, sums);
    });
    for (double& value : sums) value /= static_cast<double>(meta.tokens - begin);
  }
  return out;
}

}  // namespace kvspan
