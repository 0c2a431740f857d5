// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/batch.h"

#include <algorithm>
#include <functional>

#include <tbb/parallel_for.h>
#include <tbb/parallel_invoke.h>
#include <tbb/task_arena.h>

#include "tracegen/forward/runner_common.h"

namespace kvspan::tracegen {

Batch::Batch(const Checkpoint& checkpoint, StableDense& dense, const Geometry& geometry,
             const FidelityPlan& all_measured, RowIndex block_rows)
    : checkpoint_(checkpoint),
      spec_(checkpoint.spec()),
      geometry_(geometry),
      measured_(all_measured),
      block_rows_(block_rows),
      math_(spec_, std::ref(dense)),
      all_rows_(static_cast<std::size_t>(geometry.tokens), 1) {}

void Batch::advance(std::span<const Rows> rows) {
  std::vector<std::int32_t> ids;
  std::vector<PositionRun> positions;
  std::vector<std::int64_t> begins;
  last_.clear();
  for (const Rows& r : rows) {
    begins.push_back(static_cast<std::int64_t>(ids.size()));
    positions.push_back({r.begin, static_cast<std::int64_t>(r.ids.size())});
    ids.insert(ids.end(), r.ids.begin(), r.ids.end());
    last_.push_back(static_cast<std::int64_t>(ids.size()) - 1);
  }
  const std::size_t count = ids.size();
  hidden_.resize(count * static_cast<std::size_t>(spec_.hidden));
  q_.resize(count * static_cast<std::size_t>(spec_.q_width()));
  k_.resize(count * static_cast<std::size_t>(spec_.kv_width()));
  v_.resize(k_.size());
  attended_.resize(q_.size());
  embed_rows(checkpoint_, ids, hidden_);
  for (int l = 0; l < spec_.layers; ++l) {
    const LayerWeights& weights = checkpoint_.layer(l);
    math_.project(weights, l, positions, hidden_.data(), {q_.data(), k_.data(), v_.data()});
    tbb::parallel_for(std::size_t{0}, rows.size(), [&](std::size_t i) {
      // A thread that waits inside a block must not begin another one in the same buffers.
      tbb::this_task_arena::isolate([&] { attend(l, rows[i], begins[i]); });
    });
    math_.finish(weights, l, attended_.data(), static_cast<std::int64_t>(count), hidden_.data());
  }
}

std::int64_t Batch::bytes(const ModelSpec& model, RowIndex rows) {
  const std::int64_t width = 2 * std::int64_t{model.hidden} + 2 * model.q_width() +
                             2 * model.kv_width() + 2 * std::int64_t{model.intermediate};
  return rows * width * static_cast<std::int64_t>(sizeof(float));
}

void Batch::take(int layer, const Rows& rows, std::int64_t at, const Sequence& sequence) const {
  const auto count = static_cast<RowIndex>(rows.ids.size());
  std::copy_n(q_.data() + at * spec_.q_width(), count * spec_.q_width(),
              sequence.q(layer, rows.begin));
  std::copy_n(k_.data() + at * spec_.kv_width(), count * spec_.kv_width(),
              sequence.k(layer, rows.begin));
  std::copy_n(v_.data() + at * spec_.kv_width(), count * spec_.kv_width(),
              sequence.v(layer, rows.begin));
  sequence.scores(layer).read(rows.begin, rows.begin + count);
}

// Attention of one branch's rows, which stand at `at` in the batch.
void Batch::attend(int layer, const Rows& rows, std::int64_t at) {
  const RowIndex end = rows.begin + std::ssize(rows.ids);
  take(layer, rows, at, *rows.branch->sequence);
  if (rows.twin != nullptr) take(layer, rows, at, *rows.twin->sequence);
  std::unique_ptr<BlockTerms>& terms = terms_.local();
  if (terms == nullptr)
    terms = std::make_unique<BlockTerms>(geometry_, measured_, block_rows_, true);
  for (RowIndex row = rows.begin; row < end; row += block_rows_) {
    const RowIndex block_end = std::min(end, row + block_rows_);
    const RowBlock& block =
        terms->compute(rows.branch->sequence->scores(layer), row, block_end, all_rows_);
    const std::span<float> out(attended_.data() + (at + row - rows.begin) * spec_.q_width(),
                               static_cast<std::size_t>((block_end - row) * spec_.q_width()));
    if (rows.twin == nullptr) {
      rows.branch->replay->process(layer, block, out);
    } else {
      tbb::parallel_invoke([&] { rows.branch->replay->process(layer, block, out); },
                           [&] { rows.twin->replay->process(layer, block, {}); });
    }
  }
}

void Batch::logits(std::span<const std::size_t> wanted, std::vector<std::vector<float>>& out) {
  const auto width = static_cast<std::size_t>(spec_.hidden);
  const auto vocabulary = static_cast<std::size_t>(spec_.vocabulary);
  const auto block = static_cast<std::size_t>(head_block_rows(spec_));
  std::vector<float> hidden, logits;
  for (std::size_t begin = 0; begin < wanted.size(); begin += block) {
    const std::size_t count = std::min(block, wanted.size() - begin);
    hidden.resize(count * width);
    logits.resize(count * vocabulary);
    for (std::size_t i = 0; i < count; ++i) {
      const auto row = static_cast<std::size_t>(last_[wanted[begin + i]]);
      std::copy_n(hidden_.data() + row * width, width, hidden.data() + i * width);
    }
    math_.head(checkpoint_, hidden.data(), static_cast<std::int64_t>(count), logits.data());
    for (std::size_t i = 0; i < count; ++i) {
      const float* from = logits.data() + i * vocabulary;
      out[wanted[begin + i]].assign(from, from + vocabulary);
    }
  }
}

}  // namespace kvspan::tracegen
