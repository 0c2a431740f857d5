// SPDX-License-Identifier: Apache-2.0
// Attention that emits, beside its output, the log-sum-exp and the largest probabilities of each
// row, and the mass that each key received; no more than one tile of scores exists at a time.
//
// A block owns a tile of rows of one KV head: rows r of all query heads that read it, so that a
// tile is full even when one token is decoded and K and V are read once a group (GQA):
//
//     packed row   0        1        ..  group    group+1        K, V tiles, last to first
//     is           r0 head0 r0 head1 ..  r1 head0 r1 head1       [ ... ][ ... ][ ..\]  diagonal
//
// A warp holds 16 packed rows of the accumulators in registers, in the fragment layout of mma (see
// kernel.h): lane (g, t) has rows g and g + 8, columns 2t and 2t + 1 of every 8. Types without
// tensor cores (fp32, or any before sm_80) multiply by FMA in the same layout; all that follows a
// product is one text. Scores are kept in units of log2: exp2(z), one instruction, is exp.
//
// Largest probabilities. A softmax is monotonic, so they are the largest scores, and the final sum
// is not needed to select them. Each row has a threshold, at first none, and a list of candidates
// in device memory, longer than K by kSlack:
//
//     score >= threshold?  -- no -->  forgotten: one comparison, the common case
//            | yes
//            v
//     [ candidates 0 .. K .. K + kSlack ]  full?  cut: bisect to a score that K candidates reach,
//                                                drop those below it, and it is the new threshold
//
// Keys come last to first, nearest first, which by locality raises the threshold early; on equal
// scores the key that comes later is lower and belongs before those seen, hence >= and no special
// rule. Of n keys in random order about K ln(n / K) become candidates (310 of 8,192 for K = 64):
// one or two cuts a row, each of about ten passes over some 300 candidates by a warp. In the worst
// order (scores falling with the key, or all equal) each key is one, and a cut comes every kSlack /
// 2 keys or so. A second kernel, a warp a row, takes the exact K of what is left, sorts them, and
// knows by then the sum: p = exp2(z - lse).
//
// Column masses need that sum as well, for each score: they cost a second sweep that recomputes q.k
// (half of the products) and is launched only when they are asked for. A block owns a tile of keys
// and goes over the rows, so that no two blocks add to one number and the bits never change.
//
// Source: Dao, FlashAttention-2 (2023), sec. 3.1; Milakov and Gimelshein, Online normalizer
// calculation for softmax (2018).
#include <algorithm>
#include <string>

#include "sim/base/error.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/attention/candidates.cuh"
#include "tracegen/cuda/attention/shape.cuh"
#include "tracegen/cuda/kernel.h"

namespace kvspan::tracegen {
namespace tiled_attention {
namespace {

// The exact top_k of each row's candidates, sorted, by one warp a row.
//   grid [rows * query_heads / warps]; shared memory `padded` candidates a warp, a power of 2
__global__ void finish_top_k(std::int64_t rows, Candidates candidates, int padded,
                             const float* __restrict__ lse2, float* __restrict__ prob,
                             std::int32_t* __restrict__ index) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (row >= rows) return;
  Candidate* const best = reinterpret_cast<Candidate*>(dynamic_shared()) + warp * padded;
  const Candidate* const list = candidates.list + row * candidates.capacity;
  const int count = candidates.count[row];
  const int some = min(count, candidates.top_k);
  const int kept =
      some == 0 ? 0 : keep_candidates(list, count, find_cut(list, count, some, some), best);
  for (int i = kept + lane; i < padded; i += kWarp) best[i] = 0;
  __syncwarp();
  // Bitonic, descending; zeros are below every candidate.
  for (int run = 2; run <= padded; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int i = lane; i < padded / 2; i += kWarp) {
        const int a = i / apart * apart * 2 + i % apart;
        const int b = a + apart;
        const Candidate x = best[a];
        const Candidate y = best[b];
        if ((a & run) == 0 ? x < y : x > y) {
          best[a] = y;
          best[b] = x;
        }
      }
      __syncwarp();
    }
  }
  for (int i = lane; i < candidates.top_k; i += kWarp) {
    const std::int64_t at = row * candidates.top_k + i;
    if (prob != nullptr) prob[at] = i < kept ? exp2f(candidate_score(best[i]) - lse2[row]) : 0;
    if (index != nullptr) index[at] = i < kept ? candidate_key(best[i]) : -1;
  }
}

// lse [rows * query_heads] in nats.
__global__ void finish_lse(std::int64_t rows, const float* __restrict__ lse2,
                           float* __restrict__ lse) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < rows) lse[row] = lse2[row] * kLn2;
}

// ---- Launchers ----------------------------------------------------------------------------------

int candidate_capacity(int top_k) {
  return static_cast<int>(ceil_div(top_k, kWarp)) * kWarp + kSlack;
}

// Parts of the workspace, each aligned to 16 bytes.
struct Workspace {
  std::int64_t lse2 = 0, count = 0, list = 0, bytes = 0;  // offsets
};
Workspace workspace_of(const AttentionProblem& p, int top_k) {
  const std::int64_t slots = ceil_div(p.rows * p.query_heads, 4) * 4;
  Workspace w;
  w.count = w.lse2 + slots * static_cast<std::int64_t>(sizeof(float));
  w.list = w.count + (top_k > 0 ? slots : 0) * static_cast<std::int64_t>(sizeof(int));
  w.bytes = w.list + (top_k > 0 ? slots * candidate_capacity(top_k) : 0) *
                         static_cast<std::int64_t>(sizeof(Candidate));
  return w;
}

// Errors: DeviceError if the device has not so much shared memory, or this build no code for it.
template <typename Kernels>
void check_kernels(int head_dim) {
  int device = 0, most = 0;
  KVSPAN_CUDA_CHECK(cudaGetDevice(&device));
  KVSPAN_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (Kernels::kSharedBytes > most)
    throw DeviceError("attention with head_dim " + std::to_string(head_dim) + " needs " +
                      std::to_string(Kernels::kSharedBytes) + " bytes of shared memory a block; " +
                      device_name() + " has " + std::to_string(most));
  Kernels::reserve_shared();
}

Sweep sweep_of(const AttentionProblem& p, const DeviceAttentionTensors& t) {
  const bool capture = t.top_k > 0 || t.lse != nullptr || t.column_mass != nullptr;
  const Workspace parts = workspace_of(p, t.top_k);
  auto* const base = static_cast<unsigned char*>(t.workspace);
  Sweep sweep{
      .shape = {.query_heads = p.query_heads,
                .kv_heads = p.kv_heads,
                .head_dim = p.head_dim,
                .pack = p.query_heads / p.kv_heads,
                .first = p.first,
                .rows = p.rows,
                .keys = p.first + p.rows,
                .window = p.window,
                .scale = p.scale * kLog2E,
                .visible = p.visible,
                .visible_stride = t.visible_stride > 0 ? t.visible_stride : p.first + p.rows},
      .q = t.q,
      .k = t.k,
      .v = t.v,
      .out = t.out,
      .lse2 = capture ? reinterpret_cast<float*>(base + parts.lse2) : nullptr,
      .candidates = {},
      .column_mass = t.column_mass,
      .column_stride = t.column_stride};
  if (t.top_k > 0)
    sweep.candidates = {.list = reinterpret_cast<Candidate*>(base + parts.list),
                        .count = reinterpret_cast<int*>(base + parts.count),
                        .capacity = candidate_capacity(t.top_k),
                        .top_k = t.top_k};
  return sweep;
}

template <typename Kernels>
void launch_attention(const AttentionProblem& p, const DeviceAttentionTensors& t,
                      cudaStream_t stream) {
  const Sweep sweep = sweep_of(p, t);
  Kernels::attend(sweep, stream);
  const std::int64_t slots = p.rows * p.query_heads;
  if (t.lse != nullptr)
    launch(finish_lse, grid_of(ceil_div(slots, 256)), 256, 0, stream, slots, sweep.lse2, t.lse);
  if (t.top_k > 0) {
    int padded = kWarp;
    while (padded < t.top_k) padded *= 2;
    constexpr int kFinishWarps = 4;
    launch(finish_top_k, grid_of(ceil_div(slots, kFinishWarps)), kFinishWarps * kWarp,
           static_cast<std::size_t>(kFinishWarps * padded) * sizeof(Candidate), stream, slots,
           sweep.candidates, padded, sweep.lse2, t.prob, t.index);
  }
  if (t.column_mass != nullptr) Kernels::sum_columns(sweep, stream);
}

// Calls use.operator()<Kernels>() as compiled for the type and the head size; head sizes between
// are padded with zeros in shared memory only.
template <typename Use>
void with_kernels(DeviceType type, int head_dim, const Use& use) {
  const auto with_dim = [&]<typename T>(T /*type*/) {
    if (head_dim <= 64) return use.template operator()<AttentionKernels<T, 64>>();
    if (head_dim <= 128) return use.template operator()<AttentionKernels<T, 128>>();
    return use.template operator()<AttentionKernels<T, 256>>();
  };
  switch (type) {
    case DeviceType::f32:
      return with_dim(float{});
    case DeviceType::f16:
      return with_dim(__half{});
    case DeviceType::bf16:
      return with_dim(__nv_bfloat16{});
  }
}

}  // namespace
}  // namespace tiled_attention

std::size_t attention_cuda_workspace(const AttentionProblem& problem, int top_k) {
  return static_cast<std::size_t>(tiled_attention::workspace_of(problem, top_k).bytes);
}

void check_attention_cuda(DeviceType type, int head_dim, int top_k) {
  if (head_dim < 8 || head_dim > 256 || head_dim % 8 != 0)
    throw DeviceError("attention on a GPU takes a head_dim up to 256 in steps of 8, not " +
                      std::to_string(head_dim) + "; --device cpu takes it");
  if (top_k < 0 || top_k > kMostTopK)
    throw DeviceError("attention on a GPU emits up to " + std::to_string(kMostTopK) +
                      " probabilities a row, not " + std::to_string(top_k));
  tiled_attention::with_kernels(type, head_dim, [&]<typename Kernels>() {
    tiled_attention::check_kernels<Kernels>(head_dim);
  });
}

void attention_cuda(const AttentionProblem& problem, const DeviceAttentionTensors& tensors,
                    cudaStream_t stream) {
  check_attention_cuda(tensors.type, problem.head_dim, tensors.top_k);
  if (problem.rows == 0) return;
  tiled_attention::with_kernels(tensors.type, problem.head_dim, [&]<typename Kernels>() {
    tiled_attention::launch_attention<Kernels>(problem, tensors, stream);
  });
}

}  // namespace kvspan::tracegen