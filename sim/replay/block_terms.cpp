// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/block_terms.h"

#include <numeric>

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "sim/replay/memory_plan.h"

namespace kvspan {

using kernels::padded;

BlockTerms::BlockTerms(const Geometry& geometry, const FidelityPlan& fidelity, RowIndex block_rows,
                       bool values, int layer)
    : geometry_(geometry),
      fidelity_(fidelity),
      values_(values),
      layer_(layer),
      stride_(static_cast<std::size_t>(row_stride(geometry.tokens))) {
  block_.capacity = block_rows;
  block_.tokens = geometry.tokens;
  block_.info.resize(static_cast<std::size_t>(geometry.query_heads) *
                     static_cast<std::size_t>(block_rows));
}

void BlockTerms::allocate() {
  const std::size_t rows = block_.info.size();
  buffer_.resize(rows * stride_);
  if (!values_) return;
  block_.full_output.resize(rows * static_cast<std::size_t>(geometry_.v_dim));
  all_keys_.resize(static_cast<std::size_t>(block_.tokens));
  std::iota(all_keys_.begin(), all_keys_.end(), 0);
}

const RowBlock& BlockTerms::compute(const LayerScores& scores, RowIndex begin, RowIndex end,
                                    std::span<const char> needed) {
  block_.scores = &scores;
  block_.move_to(begin, end, needed);
  if (!block_.rows.empty()) {
    if (buffer_.empty()) allocate();
    tbb::parallel_for(0, geometry_.kv_heads, [&](int kv_head) { compute_head(kv_head); });
  }
  return block_;
}

void BlockTerms::compute_head(int kv_head) {
  const Geometry& g = geometry_;
  const int group = g.query_heads / g.kv_heads;
  const std::size_t rows = block_.rows.size();
  std::vector<float*> out;
  std::vector<RowTerms> info(static_cast<std::size_t>(group) * rows);
  for (int in_group = 0; in_group < group; ++in_group) {
    for (const RowIndex row : block_.rows)
      out.push_back(buffer_.data() + block_.at(kv_head * group + in_group, row) * stride_);
  }
  block_.scores->compute(kv_head, {block_.rows, padded(block_.rows.back() + 1)}, out, info);
  for (std::size_t i = 0; i < info.size(); ++i) {
    const int q = kv_head * group + static_cast<int>(i / rows);
    block_.info[block_.at(q, block_.rows[i % rows])] = info[i];
  }
  if (values_ && fidelity_.measures_head(layer_, kv_head)) compute_outputs(kv_head, info);
}

// The full cache's outputs of the rows that are measured. info [group][rows]
void BlockTerms::compute_outputs(int kv_head, const std::vector<RowTerms>& info) {
  const Geometry& g = geometry_;
  const int group = g.query_heads / g.kv_heads;
  const std::size_t rows = block_.rows.size();
  std::vector<const float*> terms;
  std::vector<double*> outputs;
  for (std::size_t i = 0; i < info.size(); ++i) {
    const RowIndex row = block_.rows[i % rows];
    if (!fidelity_.measures(row)) continue;
    terms.push_back(info[i].terms);
    outputs.push_back(block_.full_output.data() +
                      block_.at(kv_head * group + static_cast<int>(i / rows), row) *
                          static_cast<std::size_t>(g.v_dim));
  }
  // Sums go by kValueChunk keys, from a place that does not depend on the block.
  const RowIndex from =
      block_.scores->first_key(block_.rows.front()) / kernels::kValueChunk * kernels::kValueChunk;
  kernels::weighted_values(terms.data(), static_cast<std::int64_t>(terms.size()),
                           all_keys_.data() + from, block_.rows.back() + 1 - from,
                           block_.scores->values(kv_head), g.v_dim, g.v_dim, outputs.data());
}

}  // namespace kvspan
