// SPDX-License-Identifier: Apache-2.0
#include "sim/attention/full_rows.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"

namespace kvspan {
namespace {

constexpr RowIndex kBlockRows = 16;

}  // namespace

void for_each_row(const Trace& trace, int layer, RowIndex begin, RowIndex end,
                  const std::function<void(int, RowIndex, const RowTerms&)>& use) {
  const LayerScores scores(trace, layer);
  const TraceMeta& meta = trace.meta();
  const int group = meta.query_heads / meta.kv_heads;
  const auto keys = static_cast<std::size_t>(kernels::padded(meta.tokens));
  std::vector<float> buffer(static_cast<std::size_t>(meta.query_heads * kBlockRows) * keys);
  for (RowIndex row = begin; row < end; row += kBlockRows) {
    const RowIndex last = std::min(row + kBlockRows, end);
    const auto rows = static_cast<std::size_t>(last - row);
    std::vector<RowIndex> block(rows);
    std::iota(block.begin(), block.end(), row);
    std::vector<RowTerms> info(static_cast<std::size_t>(meta.query_heads) * rows);
    for (int h = 0; h < meta.kv_heads; ++h) {
      const std::size_t first = static_cast<std::size_t>(h * group) * rows;
      std::vector<float*> pointers;
      for (std::size_t i = 0; i < static_cast<std::size_t>(group) * rows; ++i)
        pointers.push_back(buffer.data() + (first + i) * keys);
      scores.compute(h, {block, kernels::padded(last)}, pointers,
                     std::span(info).subspan(first, static_cast<std::size_t>(group) * rows));
    }
    for (RowIndex r = row; r < last; ++r) {
      if (!scores.has_row(r)) {
        throw TraceError(
            fmt::format("{}: a fit needs rows {} to {}, and layers.{}.scores.rows lacks row {}",
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
  std::vector<std::vector<double>> out(
      static_cast<std::size_t>(meta.layers),
      std::vector<double>(static_cast<std::size_t>(meta.query_heads), 0.0));
  tbb::parallel_for(0, meta.layers, [&](int layer) {
    std::vector<double>& sums = out[static_cast<std::size_t>(layer)];
    for_each_row(trace, layer, begin, meta.tokens,
                 [&](int query_head, RowIndex row, const RowTerms& terms) {
                   double outside = 0;
                   for (RowIndex j = sinks; j < row - window; ++j)
                     outside += static_cast<double>(terms.terms[j]);
                   sums[static_cast<std::size_t>(query_head)] += outside / terms.sum;
                 });
    for (double& value : sums) value /= static_cast<double>(meta.tokens - begin);
  });
  return out;
}

}  // namespace kvspan
