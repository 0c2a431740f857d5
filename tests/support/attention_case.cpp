// SPDX-License-Identifier: Apache-2.0
#include "tests/support/attention_case.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <cuda_runtime.h>
#include <limits>
#include <random>

#include <Eigen/Core>
#include <fmt/format.h>

#include "tests/twin/attention.h"
#include "tracegen/cuda/device.h"

namespace kvspan::tracegen::testing {
namespace {

// Elements as the device holds them.
std::vector<std::byte> to_type(DeviceType type, const std::vector<float>& values) {
  std::vector<std::byte> bytes;
  const auto put = [&](const auto& x) {
    const auto* const from = reinterpret_cast<const std::byte*>(&x);
    bytes.insert(bytes.end(), from, from + sizeof x);
  };
  for (const float x : values) {
    if (type == DeviceType::f32) put(x);
    if (type == DeviceType::f16) put(static_cast<Eigen::half>(x));
    if (type == DeviceType::bf16) put(static_cast<Eigen::bfloat16>(x));
  }
  return bytes;
}

float rounded(DeviceType type, double x) {
  const auto y = static_cast<float>(x);
  if (type == DeviceType::f16) return static_cast<float>(static_cast<Eigen::half>(y));
  if (type == DeviceType::bf16) return static_cast<float>(static_cast<Eigen::bfloat16>(y));
  return y;
}

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

AttentionResult empty_result(const AttentionCase& c) {
  const std::int64_t rows = c.problem.rows * c.problem.query_heads;
  AttentionResult r;
  r.out.resize(size(rows * c.problem.head_dim));
  r.lse.resize(size(rows));
  r.prob.resize(size(rows * c.top_k));
  r.index.resize(size(rows * c.top_k));
  // Not zero: column masses are added to.
  r.mass.assign(size(c.problem.query_heads * (c.problem.first + c.problem.rows)), 0.5F);
  return r;
}

template <typename T>
std::size_t bytes_of(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

}  // namespace

AttentionCase random_case(DeviceType type, AttentionProblem problem, int top_k, double spread,
                          double hidden, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const std::int64_t keys = problem.first + problem.rows;
  AttentionCase c;
  c.type = type;
  c.problem = problem;
  c.problem.scale = static_cast<float>(1 / std::sqrt(problem.head_dim));
  c.top_k = top_k;
  c.q.resize(size(problem.rows * problem.query_heads * problem.head_dim));
  c.k.resize(size(keys * problem.kv_heads * problem.head_dim));
  c.v.resize(c.k.size());
  for (float& x : c.q) x = rounded(type, normal(random) * spread);
  for (float& x : c.k) x = rounded(type, normal(random));
  for (float& x : c.v) x = rounded(type, normal(random));
  if (hidden > 0) {
    std::bernoulli_distribution visible(1 - hidden);
    c.visible.resize(size(keys * problem.kv_heads));
    for (std::uint8_t& x : c.visible) x = visible(random) ? 1 : 0;
    c.visible[0] = 0;  // row 0 reads nothing
  }
  return c;
}

void round_to_integers(AttentionCase& input, int variety) {
  const auto integer = [&](float x) {
    return std::clamp(std::round(x), -static_cast<float>(variety), static_cast<float>(variety));
  };
  std::transform(input.q.begin(), input.q.end(), input.q.begin(), integer);
  std::transform(input.k.begin(), input.k.end(), input.k.begin(), integer);
  input.problem.scale = 0.5F;
}

AttentionResult attend_on_host(const AttentionCase& input) {
  AttentionResult r = empty_result(input);
  AttentionProblem problem = input.problem;
  if (!input.visible.empty()) problem.visible = input.visible.data();
  test::attention_twin(problem, {.q = input.q.data(),
                                 .k = input.k.data(),
                                 .v = input.v.data(),
                                 .out = r.out.data(),
                                 .top_k = input.top_k,
                                 .prob = r.prob.data(),
                                 .index = r.index.data(),
                                 .lse = r.lse.data(),
                                 .column_mass = r.mass.data(),
                                 .column_stride = problem.first + problem.rows});
  return r;
}

AttentionResult attend_on_device(const AttentionCase& input) {
  // Before what copies them: an error finds copies that have not begun.
  const std::vector<std::byte> q = to_type(input.type, input.q);
  const std::vector<std::byte> k = to_type(input.type, input.k);
  const std::vector<std::byte> v = to_type(input.type, input.v);
  AttentionResult r = empty_result(input);
  const CudaStream stream;
  std::vector<CudaMemory> memory;
  const auto allocate = [&](std::size_t bytes) {
    return memory
        .emplace_back(MemoryKind::device,
                      static_cast<std::int64_t>(std::max<std::size_t>(bytes, 16)), "a test")
        .as<std::byte>();
  };
  const auto upload = [&](const void* data, std::size_t bytes) {
    std::byte* const to = allocate(bytes);
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(to, data, bytes, cudaMemcpyHostToDevice, stream.get()));
    return to;
  };
  AttentionProblem problem = input.problem;
  if (!input.visible.empty())
    problem.visible =
        reinterpret_cast<std::uint8_t*>(upload(input.visible.data(), input.visible.size()));
  const DeviceAttentionTensors t = {
      .type = input.type,
      .q = upload(q.data(), q.size()),
      .k = upload(k.data(), k.size()),
      .v = upload(v.data(), v.size()),
      .out = reinterpret_cast<float*>(allocate(bytes_of(r.out))),
      .top_k = input.top_k,
      .prob = reinterpret_cast<float*>(allocate(bytes_of(r.prob))),
      .index = reinterpret_cast<std::int32_t*>(allocate(bytes_of(r.index))),
      .lse = reinterpret_cast<float*>(allocate(bytes_of(r.lse))),
      .column_mass = reinterpret_cast<float*>(upload(r.mass.data(), bytes_of(r.mass))),
      .column_stride = problem.first + problem.rows,
      .workspace = allocate(attention_cuda_workspace(problem, input.top_k))};
  attention_cuda(problem, t, stream.get());
  const auto download = [&](auto& to, const void* from) {
    KVSPAN_CUDA_CHECK(
        cudaMemcpyAsync(to.data(), from, bytes_of(to), cudaMemcpyDeviceToHost, stream.get()));
  };
  download(r.out, t.out);
  download(r.prob, t.prob);
  download(r.index, t.index);
  download(r.lse, t.lse);
  download(r.mass, t.column_mass);
  KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return r;
}

std::string worst_difference(const AttentionCase& input, const AttentionResult& want,
                             const AttentionResult& got) {
  // Probabilities are rounded to the type before they meet V; scores are sums in fp32.
  const double unit = input.type == DeviceType::f32   ? 0x1p-21
                      : input.type == DeviceType::f16 ? 0x1p-11
                                                      : 0x1p-8;
  double largest_v = 0, largest_lse = 1;
  for (const float x : input.v) largest_v = std::max(largest_v, std::abs(double{x}));
  for (const float x : want.lse)
    if (std::isfinite(x)) largest_lse = std::max(largest_lse, std::abs(double{x}));
  const double relative = 4e-6 * (largest_lse + 8);  // of exp(z - lse), z of that size in fp32

  std::string worst;
  double excess = 1;
  const auto compare = [&](const char* name, std::size_t i, double a, double b, double bound) {
    const double times = a == b                 ? 0
                         : std::isfinite(a - b) ? std::abs(a - b) / bound
                                                : std::numeric_limits<double>::infinity();
    if (times <= excess) return;
    excess = times;
    worst = fmt::format("{}[{}] is {}, not {}: {:.3g} times the bound", name, i, b, a, times);
  };
  for (std::size_t i = 0; i < want.out.size(); ++i)
    compare("out", i, want.out[i], got.out[i], unit * largest_v + relative * largest_v);
  for (std::size_t i = 0; i < want.lse.size(); ++i)
    compare("lse", i, want.lse[i], got.lse[i], relative);
  for (std::size_t i = 0; i < want.prob.size(); ++i)
    compare("prob", i, want.prob[i], got.prob[i], relative * want.prob[i] + 1e-30);
  for (std::size_t i = 0; i < want.mass.size(); ++i)
    compare("mass", i, want.mass[i], got.mass[i], relative * want.mass[i]);

  // Every key's probability, to judge a key that stands where the reference has another.
  AttentionCase all = input;
  all.top_k = static_cast<int>(input.problem.first + input.problem.rows);
  const AttentionResult full = attend_on_host(all);
  const auto top_k = size(input.top_k), keys = size(all.top_k);
  for (std::size_t row = 0; row * top_k < want.index.size() && top_k > 0; ++row) {
    for (std::size_t i = 0; i < top_k; ++i) {
      const std::size_t at = row * top_k + i;
      if (got.index[at] == want.index[at]) continue;
      double p = -1;
      for (std::size_t j = 0; j < keys; ++j)
        if (full.index[row * keys + j] == got.index[at] && got.index[at] >= 0)
          p = full.prob[row * keys + j];
      for (std::size_t j = 0; j < i; ++j)
        if (got.index[row * top_k + j] == got.index[at]) p = -1;  // twice
      compare("probability of index", at, want.prob[at], p, relative * want.prob[at] + 1e-30);
    }
  }
  return worst;
}

bool same_bits(const AttentionResult& a, const AttentionResult& b) {
  const auto same = [](const auto& x, const auto& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), bytes_of(x)) == 0;
  };
  return same(a.out, b.out) && same(a.prob, b.prob) && same(a.index, b.index) &&
         same(a.lse, b.lse) && same(a.mass, b.mass);
}

}  // namespace kvspan::tracegen::testing
