// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/head_rows.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"

namespace kvspan::optimum {
namespace {

constexpr RowIndex kBlockRows = 16;

}  // namespace

HeadRows::HeadRows(const Trace& trace, const StoredHead& stored)
    : trace_(trace),
      layer_(stored.layer),
      group_(trace.meta().query_heads / trace.meta().kv_heads),
      served_(trace.meta().query_heads / stored.heads),
      kv_head_(stored.head * served_ / group_),
      first_(stored.head * served_ % group_),
      keys_(index(kernels::padded(trace.meta().tokens))),
      scores_(LayerScores::of_kv_head(trace, stored.layer, kv_head_)),
      buffer_(index(group_ * kBlockRows) * keys_) {}

void HeadRows::for_each(RowIndex begin, RowIndex end, std::span<const char> counts,
                        const std::function<void(const Row&)>& use) {
  for (RowIndex row = begin; row < end; row += kBlockRows) {
    const auto counted = counts.subspan(index(row), index(std::min(kBlockRows, end - row)));
    if (std::any_of(counted.begin(), counted.end(), [](char c) { return c != 0; }))
      block(row, counted, use);
  }
}

void HeadRows::block(RowIndex begin, std::span<const char> counted,
                     const std::function<void(const Row&)>& use) {
  const std::size_t rows = counted.size();
  std::vector<float*> out;
  std::vector<RowTerms> info(index(group_) * rows);
  for (std::size_t i = 0; i < info.size(); ++i) out.push_back(buffer_.data() + i * keys_);
  std::vector<RowIndex> block(rows);
  std::iota(block.begin(), block.end(), begin);
  scores_.compute(kv_head_, {block, kernels::padded(block.back() + 1)}, out, info);
  for (std::size_t r = 0; r < rows; ++r) {
    if (counted[r] == 0) continue;
    for (int g = first_; g < first_ + served_; ++g) {
      const RowTerms& terms = info[index(g) * rows + r];
      if (!scores_.has_row(block[r]) || terms.cut.total > 0) {
        throw TraceError(fmt::format(
            "{}: the optimum needs every probability of every row that counts, and layer {} of "
            "this score trace {} row {}; a qkv trace has them all",
            trace_.name(), layer_,
            scores_.has_row(block[r]) ? "holds only the largest of" : "lacks", block[r]));
      }
      if (terms.sum > 0) use({block[r], terms.terms, terms.sum, terms.sink});
    }
  }
}

}  // namespace kvspan::optimum
