// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/layer_walk.h"

#include <algorithm>
#include <numeric>

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"

namespace kvspan {

using kernels::padded;

namespace {

FidelityPlan plan_measurement(const Trace& trace, const Geometry& geometry,
                              const EngineOptions& options) {
  FidelityPlan plan = plan_fidelity(geometry.tokens, geometry.prompt, options.fidelity_rows);
  plan.output_error = wants_values(trace, options);
  plan.spans = trace.meta().spans;
  plan.intervals = !trace.is_qkv();
  if (trace.is_qkv()) return plan;
  // Only captured rows can be measured; all layers must have them.
  std::vector<int> captured(plan.measured.size(), 0);
  for (int l = 0; l < trace.meta().layers; ++l) {
    for (const std::int64_t row : trace.scores(l).rows) captured[static_cast<std::size_t>(row)]++;
  }
  for (std::size_t row = 0; row < captured.size(); ++row) {
    if (captured[row] != trace.meta().layers) plan.measured[row] = 0;
  }
  return plan;
}

std::vector<char> needed_rows(const Lineup& lineup, const FidelityPlan& fidelity) {
  std::vector<char> needed(static_cast<std::size_t>(lineup.geometry.tokens), 0);
  RowIndex changes_from = lineup.geometry.tokens;
  for (const Requirements& asked : lineup.requirements) {
    changes_from = std::min(changes_from, asked.changes_from);
    for (const RowRange& rows : asked.observed)
      std::fill(needed.begin() + rows.begin, needed.begin() + rows.end, 1);
  }
  for (RowIndex row = changes_from; row < lineup.geometry.tokens; ++row) {
    if (fidelity.measures(row)) needed[static_cast<std::size_t>(row)] = 1;
  }
  return needed;
}

// Prefill passes end blocks, so that the last rows of a pass, which rules observe, are in memory.
std::vector<RowIndex> cut_blocks(const Lineup& lineup, RowIndex block_rows) {
  std::vector<RowIndex> cuts{lineup.geometry.tokens};
  for (const Requirements& asked : lineup.requirements) {
    for (const RowIndex end : asked.passes.ends) {
      if (end <= lineup.geometry.prompt) cuts.push_back(end);
    }
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<RowIndex> ends;
  RowIndex begin = 0;
  for (const RowIndex cut : cuts) {
    // The short block comes first: the rows before the cut are the ones that rules look at.
    const RowIndex rest = (cut - begin) % block_rows;
    if (rest > 0) ends.push_back(begin + rest);
    for (RowIndex end = begin + rest + block_rows; end <= cut; end += block_rows)
      ends.push_back(end);
    begin = cut;
  }
  return ends;
}

}  // namespace

WalkPlan plan_walk(const Trace& trace, const Lineup& lineup, const EngineOptions& options,
                   RowIndex block_rows) {
  WalkPlan plan{trace, lineup, {}, {}, {}, block_rows, wants_values(trace, options)};
  if (options.fidelity) plan.fidelity = plan_measurement(trace, lineup.geometry, options);
  plan.needed = needed_rows(lineup, plan.fidelity);
  plan.block_ends = cut_blocks(lineup, block_rows);
  return plan;
}

LayerWalk::LayerWalk(const WalkPlan& plan, int layer, std::vector<Replay>& replays,
                     std::vector<DecisionBoard>& boards)
    : plan_(plan),
      scores_(plan.trace, layer),
      stride_(static_cast<std::size_t>(row_stride(plan.lineup.geometry.tokens))),
      lanes_(plan.lineup.policies.size()) {
  const Lineup& lineup = plan.lineup;
  block_.capacity = plan.block_rows;
  block_.tokens = lineup.geometry.tokens;
  block_.scores = &scores_;
  // In parallel, since what looks ahead walks the layer's attention here.
  tbb::parallel_for(std::size_t{0}, lanes_.size(), [&](std::size_t p) {
    const Policy& policy = lineup.policies[p];
    lanes_[p] = std::make_unique<Lane>(policy, lineup.requirements[p].passes, plan.trace,
                                       lineup.geometry.shape(layer, policy.per_query_head),
                                       plan.fidelity, replays[p].ledger, boards[p]);
  });
  block_.info.resize(static_cast<std::size_t>(lineup.geometry.query_heads) *
                     static_cast<std::size_t>(plan.block_rows));
}

void LayerWalk::allocate() {
  const std::size_t rows = block_.info.size();
  buffer_.resize(rows * stride_);
  if (!plan_.values) return;
  block_.full_output.resize(rows * static_cast<std::size_t>(plan_.lineup.geometry.v_dim));
  all_keys_.resize(static_cast<std::size_t>(block_.tokens));
  std::iota(all_keys_.begin(), all_keys_.end(), 0);
}

void LayerWalk::step(RowIndex begin, RowIndex end) {
  block_.begin = begin;
  block_.end = end;
  const auto needed = plan_.needed.begin();
  const auto first = std::find(needed + begin, needed + end, 1);
  block_.first = block_.last = first - needed;
  for (RowIndex row = end; row > block_.first; --row) {
    if (needed[row - 1] != 0) {
      block_.last = row;
      break;
    }
  }
  if (block_.first < block_.last) {
    if (buffer_.empty()) allocate();
    tbb::parallel_for(0, plan_.lineup.geometry.kv_heads, [&](int kv_head) { compute(kv_head); });
  }
  tbb::parallel_for(std::size_t{0}, lanes_.size(),
                    [&](std::size_t p) { lanes_[p]->process(block_); });
}

void LayerWalk::compute(int kv_head) {
  const Geometry& g = plan_.lineup.geometry;
  const int group = g.query_heads / g.kv_heads;
  const auto rows = static_cast<std::size_t>(block_.last - block_.first);
  std::vector<float*> out;
  std::vector<RowTerms> info(static_cast<std::size_t>(group) * rows);
  for (int in_group = 0; in_group < group; ++in_group) {
    for (RowIndex row = block_.first; row < block_.last; ++row)
      out.push_back(buffer_.data() + block_.at(kv_head * group + in_group, row) * stride_);
  }
  scores_.compute(kv_head, {block_.first, block_.last, padded(block_.end)}, out, info);
  for (std::size_t i = 0; i < info.size(); ++i) {
    const int q = kv_head * group + static_cast<int>(i / rows);
    block_.info[block_.at(q, block_.first + static_cast<RowIndex>(i % rows))] = info[i];
  }
  if (plan_.values) compute_outputs(kv_head, info);
}

// The full cache's outputs of the rows that are measured. info [group][rows]
void LayerWalk::compute_outputs(int kv_head, const std::vector<RowTerms>& info) {
  const Geometry& g = plan_.lineup.geometry;
  const int group = g.query_heads / g.kv_heads;
  const auto rows = static_cast<std::size_t>(block_.last - block_.first);
  std::vector<const float*> terms;
  std::vector<double*> outputs;
  for (std::size_t i = 0; i < info.size(); ++i) {
    const RowIndex row = block_.first + static_cast<RowIndex>(i % rows);
    if (!plan_.fidelity.measures(row)) continue;
    terms.push_back(info[i].terms);
    outputs.push_back(block_.full_output.data() +
                      block_.at(kv_head * group + static_cast<int>(i / rows), row) *
                          static_cast<std::size_t>(g.v_dim));
  }
  const RowIndex from = scores_.first_key(block_.first);
  kernels::weighted_values(terms.data(), static_cast<std::int64_t>(terms.size()),
                           all_keys_.data() + from, block_.last - from,
                           scores_.values() + kv_head * g.v_dim, std::int64_t{g.kv_heads} * g.v_dim,
                           g.v_dim, outputs.data());
}

}  // namespace kvspan
