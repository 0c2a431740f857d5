// SPDX-License-Identifier: Apache-2.0
// Rows are taken in batches: their terms side by side, in parallel over rows; then every column of
// the map adds up its own tokens row after row, so that no sum depends on the number of threads.
#include "sim/attention/head_attention.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <numeric>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/attention/kernels.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"
#include "sim/policy/passes.h"

namespace kvspan {
namespace {

constexpr std::int64_t kBatchBytes = std::int64_t{64} << 20U;
constexpr std::int64_t kMostBatchRows = 128;
constexpr std::size_t kPieceRows = 16;  // rows that share the keys they read

// The rows of the trace that are looked at.
std::vector<RowIndex> captured_rows(const LayerScores& scores, const TraceMeta& meta,
                                    const HeadAttentionOptions& options) {
  const RowIndex end = options.end > 0 ? options.end : meta.tokens;
  std::vector<RowIndex> rows;
  for (RowIndex row = options.begin; row < end; ++row) {
    if (scores.has_row(row)) rows.push_back(row);
  }
  return rows;
}

// As many of them as max_cost allows, evenly spread; one at least.
std::vector<RowIndex> affordable(const std::vector<RowIndex>& rows, const TraceMeta& meta,
                                 std::int64_t max_cost) {
  const double sum = std::accumulate(rows.begin(), rows.end(), 0.0);
  const double cost =
      (sum + static_cast<double>(rows.size())) * (meta.query_heads / meta.kv_heads) * meta.head_dim;
  if (max_cost == 0 || cost <= static_cast<double>(max_cost)) return rows;
  const auto all = static_cast<std::int64_t>(rows.size());
  const double share = static_cast<double>(max_cost) / cost;
  std::vector<RowIndex> chosen;
  for (const RowIndex which : spread_rows(
           0, all,
           std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(all)))))
    chosen.push_back(rows[index(which)]);
  return chosen;
}

class Walk {
 public:
  Walk(const Trace& trace, const StoredHead& stored, std::span<const std::uint32_t> deaths,
       const HeadAttentionOptions& options)
      : tokens_(trace.meta().tokens),
        group_(trace.meta().query_heads / trace.meta().kv_heads),
        served_(trace.meta().query_heads / stored.heads),
        kv_head_(stored.head * served_ / group_),
        first_(stored.head * served_ % group_),
        keys_(kernels::padded(tokens_)),
        deaths_(deaths),
        scores_(LayerScores::of_kv_head(trace, stored.layer, kv_head_)),
        received_(index(tokens_), 0.0),
        lost_(index(tokens_), 0.0) {
    out_.grid = std::min(options.grid, tokens_);
    out_.map.assign(index(out_.grid * out_.grid), std::numeric_limits<float>::quiet_NaN());
    const std::vector<RowIndex> all = captured_rows(scores_, trace.meta(), options);
    out_.rows = affordable(all, trace.meta(), options.max_cost);
    out_.sampled = out_.rows.size() < all.size();
    if (out_.sampled)
      scale_ = static_cast<double>(all.size()) / static_cast<double>(out_.rows.size());
  }

  HeadAttention run(const HeadAttentionOptions& options) {
    const std::int64_t row_bytes = group_ * keys_ * static_cast<std::int64_t>(sizeof(float));
    const auto most = index(std::clamp<std::int64_t>(kBatchBytes / row_bytes, 1, kMostBatchRows));
    for (std::size_t at = 0; at < out_.rows.size(); at += most) {
      if (options.cancelled && options.cancelled()) throw Interrupted();
      const std::span<const RowIndex> batch =
          std::span(out_.rows).subspan(at, std::min(most, out_.rows.size() - at));
      compute(batch);
      tbb::parallel_for(std::int64_t{0}, out_.grid,
                        [&](std::int64_t column) { add(batch, column); });
    }
    for (const double sum : received_) out_.received.push_back(static_cast<float>(sum * scale_));
    for (const double sum : lost_) out_.lost.push_back(static_cast<float>(sum * scale_));
    return std::move(out_);
  }

 private:
  void compute(std::span<const RowIndex> batch) {
    buffer_.resize(batch.size() * index(group_ * keys_));
    info_.resize(batch.size() * index(group_));
    const std::size_t pieces = (batch.size() + kPieceRows - 1) / kPieceRows;
    tbb::parallel_for(std::size_t{0}, pieces, [&](std::size_t piece) {
      const std::size_t begin = piece * kPieceRows;
      const std::size_t rows = std::min(kPieceRows, batch.size() - begin);
      std::vector<float*> out;
      std::vector<RowTerms> info(index(group_) * rows);
      for (int g = 0; g < group_; ++g) {
        for (std::size_t i = begin; i < begin + rows; ++i)
          out.push_back(buffer_.data() + at(i, g) * index(keys_));
      }
      const std::span<const RowIndex> of = batch.subspan(begin, rows);
      scores_.compute(kv_head_, {of, kernels::padded(of.back() + 1)}, out, info);
      for (std::size_t j = 0; j < info.size(); ++j)
        info_[at(begin + j % rows, static_cast<int>(j / rows))] = info[j];
    });
  }

  // The tokens of one column of the map.
  void add(std::span<const RowIndex> batch, std::int64_t column) {
    const std::int64_t begin = (column * tokens_ + out_.grid - 1) / out_.grid;
    const std::int64_t end = ((column + 1) * tokens_ + out_.grid - 1) / out_.grid;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const RowIndex row = batch[i];
      float& cell = out_.map[index(row * out_.grid / tokens_ * out_.grid + column)];
      for (std::int64_t t = begin; t < std::min(end, row + 1); ++t) {
        double p = 0;
        for (int g = first_; g < first_ + served_; ++g) {
          const RowTerms& terms = info_[at(i, g)];
          if (terms.sum > 0) p += static_cast<double>(terms.terms[t]) / terms.sum;
        }
        p /= served_;
        (row < static_cast<RowIndex>(deaths_[index(t)]) ? received_ : lost_)[index(t)] += p;
        if (!(cell >= static_cast<float>(p))) cell = static_cast<float>(p);
      }
    }
  }

  [[nodiscard]] std::size_t at(std::size_t i, int g) const { return i * index(group_) + index(g); }

  std::int64_t tokens_;
  int group_;    // query heads of a KV head
  int served_;   // query heads of the stored head
  int kv_head_;  // that the stored head belongs to
  int first_;    // of its group: the first that the stored head serves
  std::int64_t keys_;
  std::span<const std::uint32_t> deaths_;
  LayerScores scores_;
  std::vector<double> received_, lost_;  // [tokens]
  double scale_ = 1;
  std::vector<float> buffer_;   // [batch rows][group][keys]
  std::vector<RowTerms> info_;  // [batch rows][group]
  HeadAttention out_;
};

}  // namespace

HeadAttention attention_of_head(const Trace& trace, const StoredHead& stored,
                                std::span<const std::uint32_t> deaths,
                                const HeadAttentionOptions& options) {
  assert(deaths.size() == index(trace.meta().tokens));
  assert(stored.heads == trace.meta().kv_heads || stored.heads == trace.meta().query_heads);
  assert(options.grid >= 1 && options.begin >= 0 && options.end <= trace.meta().tokens);
  HeadAttention out;
  tbb::task_arena arena(options.threads > 0 ? options.threads : tbb::task_arena::automatic);
  arena.execute([&] { out = Walk(trace, stored, deaths, options).run(options); });
  return out;
}

}  // namespace kvspan
