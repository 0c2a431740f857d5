// SPDX-License-Identifier: Apache-2.0
// The attention kernel against what the card can do, measured in the same run: bytes a second of a
// copy of device memory, FLOP/s of a cuBLAS product; and capture against the same attention
// without.
//   cmake --build --preset release --target kvspan_cuda_bench && kvspan_cuda_bench
// Counters: TFLOP/s of q.k and p.v over the keys that causality lets a row read; `of_gemm`, their
// share of the cuBLAS figure for the type; `over_plain`, time over that without capture, minus 1.
#include <cmath>
#include <cstdio>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/device.h"
#include "tracegen/cuda/layer.h"

namespace kvspan::tracegen {
namespace {

CudaMemory device_memory(std::int64_t bytes) {
  return {MemoryKind::device, bytes, "the benchmark"};
}

// Normal numbers, so that the card draws the power that it draws at work.
CudaMemory random_numbers(std::int64_t count, DeviceType type, const CudaStream& stream) {
  std::vector<float> host(static_cast<std::size_t>(count));
  std::uint32_t state = 1;
  for (float& x : host) {
    float sum = -6;
    for (int i = 0; i < 12; ++i) {
      state = state * 1664525U + 1013904223U;
      sum += static_cast<float>(state >> 8) / static_cast<float>(1U << 24);
    }
    x = sum;
  }
  const CudaMemory wide = device_memory(count * static_cast<std::int64_t>(sizeof(float)));
  CudaMemory out = device_memory(count * (type == DeviceType::f32 ? 4 : 2));
  KVSPAN_CUDA_CHECK(cudaMemcpyAsync(wide.as<void>(), host.data(), host.size() * sizeof(float),
                                    cudaMemcpyHostToDevice, stream.get()));
  narrow_cuda(wide.as<float>(), count, type, out.as<void>(), stream.get());
  KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return out;
}

// Mean seconds of one call of `work`, by events of the device; the first call is not counted.
template <typename Work>
double measure(benchmark::State& state, const CudaStream& stream, const Work& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  KVSPAN_CUDA_CHECK(cudaEventCreate(&begin));
  KVSPAN_CUDA_CHECK(cudaEventCreate(&end));
  work();
  double seconds = 0;
  for (auto _ : state) {
    KVSPAN_CUDA_CHECK(cudaEventRecord(begin, stream.get()));
    work();
    KVSPAN_CUDA_CHECK(cudaEventRecord(end, stream.get()));
    KVSPAN_CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    KVSPAN_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    state.SetIterationTime(milliseconds * 1e-3);
    seconds += milliseconds * 1e-3;
  }
  KVSPAN_CUDA_CHECK(cudaEventDestroy(begin));
  KVSPAN_CUDA_CHECK(cudaEventDestroy(end));
  return seconds / static_cast<double>(state.iterations());
}

std::map<DeviceType, double> gemm_flops;  // a second, the best measured
std::map<std::tuple<std::string, DeviceType, std::int64_t>, double> plain_seconds;

void bm_copy(benchmark::State& state) {
  const std::int64_t bytes = std::int64_t{1} << 30;
  const CudaStream stream;
  const CudaMemory from = device_memory(bytes), to = device_memory(bytes);
  measure(state, stream, [&] {
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(to.as<void>(), from.as<void>(),
                                      static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                                      stream.get()));
  });
  state.SetBytesProcessed(state.iterations() * 2 * bytes);  // read and written
}

void bm_gemm(benchmark::State& state, DeviceType type) {
  constexpr int kSize = 8192;
  const CudaStream stream;
  cublasHandle_t handle = nullptr;
  cublasCreate(&handle);
  cublasSetStream(handle, stream.get());
  const std::int64_t count = std::int64_t{kSize} * kSize;
  const CudaMemory a = random_numbers(count, type, stream), b = random_numbers(count, type, stream);
  const CudaMemory c = device_memory(count * 4);
  const cudaDataType_t cuda_type = type == DeviceType::f32   ? CUDA_R_32F
                                   : type == DeviceType::f16 ? CUDA_R_16F
                                                             : CUDA_R_16BF;
  const float one = 1, zero = 0;
  bool fine = true;
  const double seconds = measure(state, stream, [&] {
    fine = fine && cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one,
                                a.as<void>(), cuda_type, kSize, b.as<void>(), cuda_type, kSize,
                                &zero, c.as<void>(), CUDA_R_32F, kSize, CUBLAS_COMPUTE_32F,
                                CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
  });
  cublasDestroy(handle);
  if (!fine) return state.SkipWithError("cuBLAS failed");
  gemm_flops[type] = 2.0 * kSize * kSize * kSize / seconds;
  state.counters["TFLOP/s"] = gemm_flops[type] * 1e-12;
}

struct Shape {
  const char* model;
  int query_heads, kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{"SmolLM2-135M", 9, 3, 64}, {"Llama-3.1-8B", 32, 8, 128}};

enum class Capture { none, scores, column_mass };

// The last `rows` rows of a prompt of `keys`: a wave of the runner.
void bm_attention(benchmark::State& state, const Shape& shape, DeviceType type, Capture capture,
                  std::int64_t keys, std::int64_t rows) {
  constexpr int kTopK = 64;
  const CudaStream stream;
  const std::int64_t heads = rows * shape.query_heads;
  const CudaMemory q = random_numbers(heads * shape.head_dim, type, stream);
  const CudaMemory k = random_numbers(keys * shape.kv_heads * shape.head_dim, type, stream);
  const CudaMemory v = random_numbers(keys * shape.kv_heads * shape.head_dim, type, stream);
  const CudaMemory out = device_memory(heads * shape.head_dim * 4);
  const CudaMemory prob = device_memory(heads * kTopK * 4),
                   index = device_memory(heads * kTopK * 4);
  const CudaMemory lse = device_memory(heads * 4);
  const CudaMemory mass = device_memory(shape.query_heads * keys * 4);
  const AttentionProblem problem = {
      .query_heads = shape.query_heads,
      .kv_heads = shape.kv_heads,
      .head_dim = shape.head_dim,
      .first = keys - rows,
      .rows = rows,
      .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)))};
  const int top_k = capture == Capture::none ? 0 : kTopK;
  const CudaMemory workspace =
      device_memory(static_cast<std::int64_t>(attention_cuda_workspace(problem, top_k)));
  DeviceAttentionTensors t;
  t.type = type;
  t.q = q.as<void>();
  t.k = k.as<void>();
  t.v = v.as<void>();
  t.out = out.as<float>();
  t.workspace = workspace.as<void>();
  t.top_k = top_k;
  t.column_stride = keys;
  if (capture != Capture::none) {
    t.prob = prob.as<float>();
    t.index = index.as<std::int32_t>();
    t.lse = lse.as<float>();
  }
  if (capture == Capture::column_mass) t.column_mass = mass.as<float>();
  const double seconds = measure(state, stream, [&] { attention_cuda(problem, t, stream.get()); });

  const double pairs =
      static_cast<double>(rows) * (static_cast<double>(keys) - static_cast<double>(rows - 1) / 2);
  const double flops = 4 * pairs * shape.query_heads * shape.head_dim / seconds;
  state.counters["TFLOP/s"] = flops * 1e-12;
  if (gemm_flops.contains(type)) state.counters["of_gemm"] = flops / gemm_flops[type];
  const auto key = std::tuple(std::string(shape.model), type, keys);
  if (capture == Capture::none)
    plain_seconds[key] = seconds;
  else if (plain_seconds.contains(key))
    state.counters["over_plain"] = seconds / plain_seconds[key] - 1;
}

void register_all() {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  add("copy 1 GiB", bm_copy);
  const std::map<DeviceType, std::string> types = {
      {DeviceType::f16, "f16"}, {DeviceType::bf16, "bf16"}, {DeviceType::f32, "f32"}};
  for (const auto& [type, name] : types)
    add("gemm 8192 " + name, [t = type](benchmark::State& state) { bm_gemm(state, t); });
  for (const Shape& shape : kShapes)
    for (const auto& [type, type_name] : types)
      for (const std::int64_t keys : {2048, 8192, 32768})
        for (const auto& [capture, what] :
             {std::pair(Capture::none, "plain"), std::pair(Capture::scores, "top 64 and lse"),
              std::pair(Capture::column_mass, "and column mass")})
          add(fmt::format("{} {} {} {}", shape.model, type_name, keys, what),
              [shape, t = type, c = capture, keys](benchmark::State& state) {
                bm_attention(state, shape, t, c, keys, 1024);
              });
}

}  // namespace
}  // namespace kvspan::tracegen

int main(int argc, char** argv) {
  try {
    std::printf("device: %s\n", kvspan::tracegen::device_name().c_str());
    kvspan::tracegen::register_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
  } catch (const kvspan::DeviceError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
}
