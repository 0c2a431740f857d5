// SPDX-License-Identifier: Apache-2.0
// Idea: the query heads that share a KV head are stacked, so that one tile of rows is one dense
// product with a block of keys; the softmax is carried along the blocks (Milakov and Gimelshein
// 2018, Dao 2023), and a row's largest logits are collected while the block is in cache:
//
//                 512 keys          each block:  z = q k^T                (sim's logits)
//          +----------------+                    m' = max(m, max z), o *= exp(m - m')
//   rows x |  z, then terms |                    terms = exp(z - m'), s = s exp(m - m') + sum
//   group  +----------------+                    o += terms v             (the library's product)
//
// Rankings and masses rest on z, so it comes from the replay's own kernel: equal keys have equal
// logits, and the same bits as when a q.k.v. trace is replayed. The library's product would sum the
// last keys of a block in another order, on some machines only; nothing is ranked by o.
//
// A key gets into a row's list only if it beats the K-th best so far: of N keys in random order
// about K ln(N / K) do. Column masses need the final log-sum-exp, hence a second sweep, q k^T
// again.
#include "tracegen/forward/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "tracegen/forward/dense_kernels.h"

namespace kvspan::tracegen {
namespace {

using kernels::Candidate;
using kvspan::kernels::kPanel;
using kvspan::kernels::padded;

constexpr std::int64_t kKeys = 512;           // of a block; blocks start at multiples of it
constexpr std::int64_t kStride = kKeys + 16;  // of rows of z: 2 KiB would share sets of the cache
static_assert(kKeys % kPanel == 0);
constexpr float kNever = -std::numeric_limits<float>::infinity();

// A tile: rows [begin, end) of the call, all query heads of one KV head. Stacked row
// (r - begin) * group + i is row r of query head kv_head * group + i.
struct Tile {
  int kv_head;
  std::int64_t begin, end;
};

struct Workspace {
  std::vector<float> panels, z, out, max;  // panels: the block's keys, packed for logits()
  std::vector<const float*> q;             // [stacked rows], pointers into the call's queries
  std::vector<float*> rows;                // [stacked rows], pointers into z
  std::vector<double> sum;
  std::vector<std::vector<Candidate>> best;
  std::vector<float> threshold;
};

class Attention {
 public:
  Attention(const AttentionProblem& p, const AttentionTensors& t)
      : p_(p), t_(t), group_(p.query_heads / p.kv_heads) {
    tile_rows_ = std::clamp<std::int64_t>(192 / group_, 16, 64);
    if (t.column_mass != nullptr) lse_.resize(static_cast<std::size_t>(p.rows * p.query_heads));
  }

  void run() {
    const std::int64_t tiles = (p_.rows + tile_rows_ - 1) / tile_rows_;
    tbb::enumerable_thread_specific<Workspace> workspaces;
    // Later tiles read more keys: they go first.
    tbb::parallel_for(std::int64_t{0}, tiles * p_.kv_heads, [&](std::int64_t i) {
      const std::int64_t tile = tiles - 1 - i / p_.kv_heads;
      attend({static_cast<int>(i % p_.kv_heads), tile * tile_rows_,
              std::min(p_.rows, (tile + 1) * tile_rows_)},
             workspaces.local());
    });
    if (t_.column_mass == nullptr) return;
    const std::int64_t blocks = (keys() + kKeys - 1) / kKeys;
    tbb::parallel_for(std::int64_t{0}, blocks * p_.kv_heads, [&](std::int64_t i) {
      add_columns(static_cast<int>(i % p_.kv_heads), i / p_.kv_heads * kKeys, workspaces.local());
    });
  }

 private:
  [[nodiscard]] std::int64_t keys() const { return p_.first + p_.rows; }
  [[nodiscard]] std::int64_t first_key(std::int64_t row) const {
    return p_.window > 0 ? std::max<std::int64_t>(0, row - p_.window + 1) : 0;
  }

  [[nodiscard]] std::int64_t stacked(const Tile& tile) const {
    return (tile.end - tile.begin) * group_;
  }

  void point_at_rows(const Tile& tile, Workspace& w) const {
    const auto size = static_cast<std::size_t>(stacked(tile));
    w.q.resize(size);
    w.rows.resize(size);
    w.z.resize(size * kStride);
    for (std::int64_t s = 0; s < stacked(tile); ++s) {
      const std::int64_t head = std::int64_t{tile.kv_head} * group_ + s % group_;
      const auto i = static_cast<std::size_t>(s);
      w.q[i] = t_.q + ((tile.begin + s / group_) * p_.query_heads + head) * p_.head_dim;
      w.rows[i] = w.z.data() + s * kStride;
    }
  }

  void pack(int kv_head, std::int64_t begin, std::int64_t end, Workspace& w) const {
    const std::int64_t stride = std::int64_t{p_.kv_heads} * p_.head_dim;
    w.panels.resize(static_cast<std::size_t>(kKeys * p_.head_dim));
    kvspan::kernels::pack_keys(t_.k + begin * stride + std::int64_t{kv_head} * p_.head_dim,
                               end - begin, stride, p_.head_dim, w.panels.data());
  }

  // Logits z [stacked rows, kStride] of the packed keys [begin, end); -infinity where a row does
  // not read a key, and behind `end` up to a whole panel, so that sums do not depend on the tile.
  void logits(const Tile& tile, std::int64_t begin, std::int64_t end, Workspace& w) const {
    const std::int64_t count = padded(end - begin);
    kvspan::kernels::logits(w.q.data(), stacked(tile), p_.head_dim, w.panels.data(), 0,
                            count / kPanel, p_.scale, 0, w.rows.data());
    for (std::int64_t s = 0; s < stacked(tile); ++s) {
      const std::int64_t row = p_.first + tile.begin + s / group_;
      float* logit = w.rows[static_cast<std::size_t>(s)];
      const std::int64_t low = std::clamp(first_key(row), begin, end);
      const std::int64_t high = std::clamp(row + 1, low, end);
      std::fill(logit, logit + (low - begin), kNever);
      std::fill(logit + (high - begin), logit + count, kNever);
      if (p_.visible == nullptr) continue;
      const std::uint8_t* visible = p_.visible + tile.kv_head * keys();
      for (std::int64_t j = low; j < high; ++j) {
        if (visible[j] == 0) logit[j - begin] = kNever;
      }
    }
  }

  void collect(const float* z, std::int64_t begin, std::int64_t count, float& threshold,
               std::vector<Candidate>& best) const {
    kernels::append_above(z, count, threshold, static_cast<std::int32_t>(begin), best);
    if (best.size() > 4 * static_cast<std::size_t>(t_.top_k)) keep_best(best, threshold);
  }
  void keep_best(std::vector<Candidate>& best, float& threshold) const {
    const auto wanted = std::min(best.size(), static_cast<std::size_t>(t_.top_k));
    std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(wanted), best.end(),
                      [](const Candidate& a, const Candidate& b) {
                        return a.logit != b.logit ? a.logit > b.logit : a.key < b.key;
                      });
    best.resize(wanted);
    if (wanted == static_cast<std::size_t>(t_.top_k)) threshold = best.back().logit;
  }

  void attend(const Tile& tile, Workspace& w) {
    const auto size = static_cast<std::size_t>(stacked(tile));
    const std::int64_t dim = p_.head_dim;
    point_at_rows(tile, w);
    w.out.assign(size * static_cast<std::size_t>(dim), 0);
    w.max.assign(size, kNever);
    w.sum.assign(size, 0);
    w.threshold.assign(size, kNever);
    w.best.resize(std::max(w.best.size(), size));
    for (std::size_t s = 0; s < size; ++s) w.best[s].clear();

    const std::int64_t key_end = p_.first + tile.end;
    const std::int64_t stride = std::int64_t{p_.kv_heads} * dim;
    for (std::int64_t begin = first_key(p_.first + tile.begin) / kKeys * kKeys; begin < key_end;
         begin += kKeys) {
      const std::int64_t end = std::min(begin + kKeys, key_end);
      const std::int64_t count = padded(end - begin);
      pack(tile.kv_head, begin, end, w);
      logits(tile, begin, end, w);
      for (std::size_t i = 0; i < size; ++i) {
        float* z = w.rows[i];
        if (t_.top_k > 0) collect(z, begin, count, w.threshold[i], w.best[i]);
        const float max = std::max(w.max[i], kernels::maximum(z, count));
        if (max == kNever) {
          std::fill(z, z + count, 0.0F);
          continue;
        }
        if (max > w.max[i]) {
          const float shrink = std::exp(w.max[i] - max);
          kernels::scale(w.out.data() + static_cast<std::int64_t>(i) * dim, dim, shrink);
          w.sum[i] *= double{shrink};
          w.max[i] = max;
        }
        w.sum[i] += double{kernels::exp_minus(z, count, max)};
      }
      kernels::gemm({.m = stacked(tile),
                     .n = dim,
                     .k = end - begin,
                     .a = w.z.data(),
                     .lda = kStride,
                     .b = t_.v + begin * stride + tile.kv_head * dim,
                     .ldb = stride,
                     .beta = 1,
                     .c = w.out.data(),
                     .ldc = dim});
    }
    for (std::int64_t s = 0; s < stacked(tile); ++s) emit(tile, s, w);
  }

  // The end of a stacked row: normalised output, log-sum-exp, and its largest probabilities.
  void emit(const Tile& tile, std::int64_t s, Workspace& w) {
    const auto i = static_cast<std::size_t>(s);
    const std::int64_t at = (tile.begin + s / group_) * p_.query_heads +
                            std::int64_t{tile.kv_head} * group_ + s % group_;
    const float* from = w.out.data() + s * p_.head_dim;
    float* out = t_.out + at * p_.head_dim;
    std::copy(from, from + p_.head_dim, out);
    if (w.sum[i] > 0) kernels::scale(out, p_.head_dim, static_cast<float>(1 / w.sum[i]));
    const auto lse = static_cast<float>(double{w.max[i]} + std::log(w.sum[i]));
    if (t_.lse != nullptr) t_.lse[at] = lse;
    if (!lse_.empty()) lse_[static_cast<std::size_t>(at)] = lse;
    if (t_.top_k == 0) return;
    keep_best(w.best[i], w.threshold[i]);
    for (std::int64_t k = 0; k < t_.top_k; ++k) {
      const bool some = static_cast<std::size_t>(k) < w.best[i].size();
      const Candidate best = some ? w.best[i][static_cast<std::size_t>(k)] : Candidate{-1, 0};
      if (t_.index != nullptr) t_.index[at * t_.top_k + k] = best.key;
      if (t_.prob != nullptr) {
        t_.prob[at * t_.top_k + k] =
            some ? static_cast<float>(std::exp(double{best.logit} - double{w.max[i]}) / w.sum[i])
                 : 0.0F;
      }
    }
  }

  // Adds the probabilities of all rows at the keys of the block that starts at `begin`.
  void add_columns(int kv_head, std::int64_t begin, Workspace& w) {
    const std::int64_t end = std::min(begin + kKeys, keys());
    const std::int64_t count = padded(end - begin);
    std::vector<double> sums(static_cast<std::size_t>(group_) * kKeys);
    pack(kv_head, begin, end, w);
    const std::int64_t from = std::max<std::int64_t>(0, begin - p_.first) / tile_rows_ * tile_rows_;
    for (std::int64_t r = from; r < p_.rows; r += tile_rows_) {
      const Tile tile{kv_head, r, std::min(p_.rows, r + tile_rows_)};
      if (first_key(p_.first + tile.begin) >= end) break;
      point_at_rows(tile, w);
      logits(tile, begin, end, w);
      for (std::int64_t s = 0; s < stacked(tile); ++s) {
        const std::int64_t at =
            (r + s / group_) * p_.query_heads + std::int64_t{kv_head} * group_ + s % group_;
        const float lse = lse_[static_cast<std::size_t>(at)];
        if (lse == kNever) continue;
        float* z = w.rows[static_cast<std::size_t>(s)];
        (void)kernels::exp_minus(z, count, lse);
        kernels::add_to(z, count, sums.data() + s % group_ * kKeys);
      }
    }
    for (int i = 0; i < group_; ++i) {
      float* out = t_.column_mass + (std::int64_t{kv_head} * group_ + i) * t_.column_stride;
      for (std::int64_t j = begin; j < end; ++j) {
        out[j] += static_cast<float>(sums[static_cast<std::size_t>(i * kKeys + j - begin)]);
      }
    }
  }

  const AttentionProblem& p_;
  const AttentionTensors& t_;
  int group_;
  std::int64_t tile_rows_;
  std::vector<float> lse_;  // [rows, query_heads], for column masses
};

}  // namespace

void attention_cpu(const AttentionProblem& problem, const AttentionTensors& tensors) {
  Attention(problem, tensors).run();
}

}  // namespace kvspan::tracegen
