// SPDX-License-Identifier: Apache-2.0
// The score pass on a GPU at the size it is for: 32 layers of 32,768 tokens, 32 query heads over 8
// KV heads of 128 in bf16, 40 policies: retained attention of all decode rows, from the 16,384th
// on, beside what cuBLAS makes of the card in the same run. One random layer serves as all 32: the
// trace would be 13 GB.
//   cmake --build --preset release --target kvspan_score_bench
//   kvspan_score_bench [TOKENS] [LAYERS]
// The last line: seconds; FLOP/s of q.k over the keys that causality lets a row read, and their
// share of cuBLAS; the same of the first policy alone.
#include <cstdint>
#include <cstdlib>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <exception>
#include <numeric>
#include <random>
#include <vector>

#include <Eigen/Core>
#include <fmt/format.h>

#include "gpu_replay/cuda/score.h"
#include "sim/base/error.h"
#include "tracegen/cuda/device.h"

namespace kvspan::gpu_replay {
namespace {

using tracegen::CudaMemory;
using tracegen::CudaStream;
using tracegen::MemoryKind;

constexpr int kQueryHeads = 32, kKvHeads = 8, kDim = 128, kPolicies = 40;
constexpr std::int64_t kPieceRows = 4096;

template <typename T>
CudaMemory upload(const std::vector<T>& values, const CudaStream& stream) {
  const std::size_t bytes = values.size() * sizeof(T);
  CudaMemory out(MemoryKind::device, static_cast<std::int64_t>(bytes), "the benchmark");
  KVSPAN_CUDA_CHECK(
      cudaMemcpyAsync(out.as<void>(), values.data(), bytes, cudaMemcpyHostToDevice, stream.get()));
  KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return out;
}

// Of which the card draws the power that it draws at work.
CudaMemory normal(std::int64_t count, unsigned seed, const CudaStream& stream) {
  std::mt19937 random(seed);
  std::normal_distribution<float> numbers;
  std::vector<Eigen::bfloat16> few(std::size_t{1} << 20U);
  for (Eigen::bfloat16& x : few) x = static_cast<Eigen::bfloat16>(numbers(random));
  std::vector<Eigen::bfloat16> values(static_cast<std::size_t>(count));
  // A stride that is odd, so that rows differ.
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = few[i * 7919 % few.size()];
  return upload(values, stream);
}

// A fifth of the cache in four ways: cut once at the prompt's end, cut after every chunk, a window,
// one leaves in every row of decode.
std::vector<std::uint32_t> deaths_of(int policy, std::int64_t tokens, std::int64_t prompt) {
  std::mt19937 random(static_cast<unsigned>(policy));
  std::vector<std::uint32_t> out;
  const std::int64_t budget = prompt / 5;
  for (int head = 0; head < kKvHeads; ++head) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(tokens));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.begin() + prompt, random);
    std::vector<std::uint32_t> deaths(order.size(), static_cast<std::uint32_t>(tokens));
    for (std::int64_t i = 0; i < tokens; ++i) {
      const std::int64_t t = order[static_cast<std::size_t>(i)];
      std::int64_t death = tokens;
      if (policy % 4 == 0 && i < prompt - budget) death = prompt;
      if (policy % 4 == 1 && t < prompt && i % 5 != 0) death = (t / 2048 + 1) * 2048;
      if (policy % 4 == 2) death = t + budget;
      if (policy % 4 == 3) death = i < prompt - budget ? prompt : i + budget;
      deaths[static_cast<std::size_t>(t)] =
          static_cast<std::uint32_t>(std::min(std::max(death, t + 1), tokens));
    }
    out.insert(out.end(), deaths.begin(), deaths.end());
  }
  return out;
}

// Seconds of one call, by events of the device; the first call is not counted.
template <typename Work>
double measure(const CudaStream& stream, const Work& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  KVSPAN_CUDA_CHECK(cudaEventCreate(&begin));
  KVSPAN_CUDA_CHECK(cudaEventCreate(&end));
  work();
  KVSPAN_CUDA_CHECK(cudaEventRecord(begin, stream.get()));
  work();
  KVSPAN_CUDA_CHECK(cudaEventRecord(end, stream.get()));
  KVSPAN_CUDA_CHECK(cudaEventSynchronize(end));
  float milliseconds = 0;
  KVSPAN_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  KVSPAN_CUDA_CHECK(cudaEventDestroy(begin));
  KVSPAN_CUDA_CHECK(cudaEventDestroy(end));
  return milliseconds * 1e-3;
}

double cublas_flops(const CudaStream& stream) {
  constexpr int kSize = 8192, kTimes = 10;
  cublasHandle_t handle = nullptr;
  cublasCreate(&handle);
  cublasSetStream(handle, stream.get());
  const CudaMemory a = normal(kSize * std::int64_t{kSize}, 1, stream);
  const CudaMemory b = normal(kSize * std::int64_t{kSize}, 2, stream);
  const CudaMemory c(MemoryKind::device, kSize * std::int64_t{kSize} * 4, "the benchmark");
  const float one = 1, zero = 0;
  bool fine = true;
  const double seconds = measure(stream, [&] {
    for (int i = 0; i < kTimes; ++i) {
      fine = fine && cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one,
                                  a.as<void>(), CUDA_R_16BF, kSize, b.as<void>(), CUDA_R_16BF,
                                  kSize, &zero, c.as<void>(), CUDA_R_32F, kSize, CUBLAS_COMPUTE_32F,
                                  CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
    }
  });
  cublasDestroy(handle);
  if (!fine) throw DeviceError("cuBLAS failed");
  return kTimes * 2.0 * kSize * kSize * kSize / seconds;
}

void run(std::int64_t tokens, int layers) {
  const std::int64_t prompt = tokens / 2;
  const CudaStream stream;
  const CudaMemory q = normal((tokens - prompt) * kQueryHeads * kDim, 3, stream);
  const CudaMemory k = normal(tokens * kKvHeads * kDim, 4, stream);
  std::vector<CudaMemory> deaths;
  std::vector<DeviceVector> vectors{{nullptr, kKvHeads, 0, tokens}};
  for (int p = 0; p < kPolicies; ++p) {
    deaths.push_back(upload(deaths_of(p, tokens, prompt), stream));
    vectors.push_back({deaths.back().as<std::uint32_t>(), kKvHeads, 0, tokens});
  }
  const CudaMemory vector = upload(vectors, stream);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens - prompt));
  std::iota(rows.begin(), rows.end(), prompt);
  const CudaMemory row = upload(rows, stream);
  const CudaMemory max(MemoryKind::device, kPieceRows * kQueryHeads * 4, "the benchmark");
  const CudaMemory sums(MemoryKind::device,
                        kPieceRows * kQueryHeads * std::int64_t{8} * (kPolicies + 1),
                        "the benchmark");
  DeviceScores scores{.query_heads = kQueryHeads,
                      .kv_heads = kKvHeads,
                      .k_dim = kDim,
                      .v_dim = kDim,
                      .tokens = tokens,
                      .type = ScoreType::bf16,
                      .scale = 0.0884F,
                      .k = k.as<void>(),
                      .vector = vector.as<DeviceVector>(),
                      .max = max.as<float>(),
                      .sums = sums.as<double>()};
  const auto layer = [&](int of_vectors) {
    scores.vectors = of_vectors;
    for (std::int64_t at = 0; at < tokens - prompt; at += kPieceRows) {
      scores.rows = std::min(kPieceRows, tokens - prompt - at);
      scores.row = row.as<std::int64_t>() + at;
      scores.q = q.as<Eigen::bfloat16>() + at * kQueryHeads * kDim;
      launch_scores(scores, stream.get());
    }
  };
  const double peak = cublas_flops(stream);
  double pairs = 0;
  for (const std::int64_t r : rows) pairs += static_cast<double>(r + 1);
  const double flops = pairs * kQueryHeads * kDim * 2 * layers;
  const auto all = [&](int of_vectors) {
    return measure(stream, [&] {
      for (int l = 0; l < layers; ++l) layer(of_vectors);
    });
  };
  const double many = all(kPolicies + 1), one = all(2);
  fmt::print(
      "{}: {} layers, {} tokens, {} decode rows: {} policies in {:.2f} s ({:.0f} TFLOP/s of q.k, "
      "{:.0f} % of cuBLAS's {:.0f} in bf16); one in {:.2f} s ({:.0f} TFLOP/s, {:.0f} %)\n",
      tracegen::device_name(), layers, tokens, tokens - prompt, kPolicies, many,
      flops / many * 1e-12, 100 * flops / many / peak, peak * 1e-12, one, flops / one * 1e-12,
      100 * flops / one / peak);
}

}  // namespace
}  // namespace kvspan::gpu_replay

int main(int argc, char** argv) {
  try {
    kvspan::gpu_replay::run(argc > 1 ? std::atoll(argv[1]) : 32768,
                            argc > 2 ? std::atoi(argv[2]) : 32);
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvspan_score_bench: {}\n", error.what());
    return 5;
  }
}
