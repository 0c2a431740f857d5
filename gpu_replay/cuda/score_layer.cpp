// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/cuda/score_layer.h"

#include <algorithm>
#include <cstring>
#include <cuda_runtime.h>
#include <map>

#include <fmt/format.h>

#include "gpu_replay/cuda/score.h"
#include "sim/base/error.h"
#include "sim/base/types.h"
#include "tracegen/cuda/device.h"

namespace kvspan::gpu_replay {
namespace {

using tracegen::CudaMemory;
using tracegen::CudaStream;
using tracegen::MemoryKind;

constexpr int kDimStep = 8;  // elements that are copied at once
constexpr std::int64_t kMostRows = 4096;
constexpr std::int64_t kMostBytes = std::int64_t{4} << 30U;  // of rows that are worked on together

int whole_steps(int dim) { return (dim + kDimStep - 1) / kDimStep * kDimStep; }

std::int64_t element_bytes(ScoreType type) { return type == ScoreType::f32 ? 4 : 2; }

class CudaScores final : public ScoreLayer {
 public:
  explicit CudaScores(const ScoreInput& input) : input_(input) {
    if (std::max(input.k_dim, input.v_dim) > kMostScoreDim) {
      throw DeviceError(
          fmt::format("the score pass on a GPU: found vectors of {}, expected at most {}; --device "
                      "cpu takes them",
                      std::max(input.k_dim, input.v_dim), kMostScoreDim));
    }
    shape();
    order_vectors();
    k_ = upload_rows(input.k, input.tokens * input.kv_heads, input.k_dim);
    scores_.k = k_.as<void>();
    if (scores_.outputs > 0) v_ = upload_rows(input.v, input.tokens * input.kv_heads, input.v_dim);
    scores_.v = v_.as<void>();
    sinks_ = upload(std::as_bytes(input.sinks), "logits of sinks");
    scores_.sinks = sinks_.as<float>();
    wait();
    reserve_rows();
  }

  [[nodiscard]] std::int64_t most_rows() const override { return most_rows_; }

  void run(std::span<const std::int64_t> rows, ScoreFigures& out) override {
    scores_.rows = std::ssize(rows);
    const std::size_t row_bytes =
        index(input_.query_heads * input_.k_dim * element_bytes(input_.type));
    std::vector<std::byte> q(rows.size() * row_bytes);
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::memcpy(q.data() + i * row_bytes, input_.q.data() + index(rows[i]) * row_bytes,
                  row_bytes);
    const std::vector<std::byte> padded = with_steps(q, input_.k_dim);
    copy(q_.as<void>(), padded.data(), padded.size(), cudaMemcpyHostToDevice);
    copy(row_.as<void>(), rows.data(), rows.size_bytes(), cudaMemcpyHostToDevice);
    launch_scores(scores_, stream_.get());

    const std::size_t count = index(input_.query_heads) * rows.size();
    std::vector<double> sums(count * index(scores_.vectors));
    std::vector<float> errors(count * index(scores_.outputs));
    out.max.resize(count);
    copy(out.max.data(), scores_.max, count * sizeof(float), cudaMemcpyDeviceToHost);
    copy(sums.data(), scores_.sums, sums.size() * sizeof(double), cudaMemcpyDeviceToHost);
    if (!errors.empty())
      copy(errors.data(), scores_.errors, errors.size() * sizeof(float), cudaMemcpyDeviceToHost);
    wait();
    out.sums.resize(sums.size());
    out.errors.assign(sums.size(), 0.0F);
    for (std::size_t i = 0; i < order_.size(); ++i) {
      std::copy_n(sums.begin() + static_cast<std::ptrdiff_t>(i * count), count,
                  out.sums.begin() + static_cast<std::ptrdiff_t>(order_[i] * count));
      if (i >= index(scores_.outputs)) continue;
      std::copy_n(errors.begin() + static_cast<std::ptrdiff_t>(i * count), count,
                  out.errors.begin() + static_cast<std::ptrdiff_t>(order_[i] * count));
    }
  }

 private:
  void shape() {
    scores_.query_heads = input_.query_heads;
    scores_.kv_heads = input_.kv_heads;
    scores_.k_dim = whole_steps(input_.k_dim);
    scores_.v_dim = whole_steps(input_.v_dim);
    scores_.tokens = input_.tokens;
    scores_.window = input_.window;
    scores_.type = input_.type;
    scores_.scale = input_.scale;
    scores_.softcap = input_.softcap;
    scores_.stride = (input_.tokens + kScoreKeys - 1) / kScoreKeys * kScoreKeys;
  }

  // The full cache, then those whose outputs are compared, then the others.
  void order_vectors() {
    std::vector<DeviceVector> vectors{{nullptr, input_.kv_heads, 0, input_.tokens}};
    order_ = {0};
    const auto add = [&](std::size_t i) {
      const DeathVector& of = input_.vectors[i];
      const auto [known, first] = deaths_.try_emplace(of.deaths.data());
      if (first) known->second = upload(std::as_bytes(of.deaths), "deaths");
      vectors.push_back({known->second.as<std::uint32_t>(), of.heads, of.begin, of.end});
      order_.push_back(i + 1);
    };
    for (const bool outputs : {true, false}) {
      for (std::size_t i = 0; i < input_.vectors.size(); ++i)
        if (input_.vectors[i].outputs == outputs) add(i);
      if (outputs && vectors.size() > 1) scores_.outputs = static_cast<int>(vectors.size());
    }
    scores_.vectors = static_cast<int>(vectors.size());
    vectors_ = upload(std::as_bytes(std::span<const DeviceVector>(vectors)), "death vectors");
    scores_.vector = vectors_.as<DeviceVector>();
    wait();  // `vectors` ends here
  }

  // Rows of `dim` elements, filled up with zeros to whole steps.
  [[nodiscard]] std::vector<std::byte> with_steps(std::span<const std::byte> rows, int dim) const {
    const std::size_t from = index(dim * element_bytes(input_.type));
    const std::size_t to = index(whole_steps(dim) * element_bytes(input_.type));
    std::vector<std::byte> out(rows.size() / from * to);
    for (std::size_t i = 0; i * from < rows.size(); ++i)
      std::memcpy(out.data() + i * to, rows.data() + i * from, from);
    return out;
  }

  CudaMemory upload(std::span<const std::byte> bytes, const char* what) {
    CudaMemory memory(MemoryKind::device, std::ssize(bytes), what);
    if (!bytes.empty()) copy(memory.as<void>(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    return memory;
  }

  CudaMemory upload_rows(std::span<const std::byte> bytes, std::int64_t rows, int dim) {
    const char* what = "keys and values of a layer";
    if (dim % kDimStep == 0) return upload(bytes, what);
    const std::vector<std::byte> wide = with_steps(bytes, dim);
    CudaMemory memory(MemoryKind::device, rows * whole_steps(dim) * element_bytes(input_.type),
                      what);
    copy(memory.as<void>(), wide.data(), wide.size(), cudaMemcpyHostToDevice);
    wait();  // `wide` ends here
    return memory;
  }

  // What rows take while they are worked on, for as many as half of the free memory holds.
  void reserve_rows() {
    const std::int64_t heads = input_.query_heads;
    const std::int64_t q = heads * scores_.k_dim * element_bytes(input_.type);
    const std::int64_t sums = heads * (scores_.vectors * std::int64_t{sizeof(double)} + 4);
    const std::int64_t logits = scores_.outputs > 0 ? heads * scores_.stride * 4 : 0;
    const std::int64_t outputs = heads * scores_.outputs * (scores_.v_dim + 1) * 4;
    std::size_t free = 0, total = 0;
    KVSPAN_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    const std::int64_t bytes = std::min(static_cast<std::int64_t>(free / 2), kMostBytes);
    most_rows_ = std::clamp<std::int64_t>(bytes / (q + sums + logits + outputs + 8), 1, kMostRows);
    if (most_rows_ > kScoreRows) most_rows_ = most_rows_ / kScoreRows * kScoreRows;
    const std::int64_t rows = most_rows_ = std::min(most_rows_, input_.tokens);
    const auto device = [&](std::int64_t size) {
      return CudaMemory(MemoryKind::device, size, "rows of the score pass");
    };
    q_ = device(rows * q);
    row_ = device(rows * 8);
    max_ = device(rows * heads * 4);
    sums_ = device(rows * (sums - heads * 4));
    logits_ = device(rows * logits);
    output_ = device(rows * heads * scores_.outputs * scores_.v_dim * 4);
    errors_ = device(rows * heads * scores_.outputs * 4);
    scores_.q = q_.as<void>();
    scores_.row = row_.as<std::int64_t>();
    scores_.max = max_.as<float>();
    scores_.sums = sums_.as<double>();
    scores_.logits = logits_.as<float>();
    scores_.output = output_.as<float>();
    scores_.errors = errors_.as<float>();
  }

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()));
  }
  void wait() { KVSPAN_CUDA_CHECK(cudaStreamSynchronize(stream_.get())); }

  ScoreInput input_;
  DeviceScores scores_;
  std::vector<std::size_t> order_;  // of the device's vectors in the figures
  std::int64_t most_rows_ = 0;
  std::map<const void*, CudaMemory> deaths_;  // by where they are on the host
  CudaMemory vectors_, sinks_, k_, v_, q_, row_, max_, sums_, logits_, output_, errors_;
  CudaStream stream_;
};

}  // namespace

std::unique_ptr<ScoreLayer> load_scores_on_cuda(const ScoreInput& input) {
  return std::make_unique<CudaScores>(input);
}

}  // namespace kvspan::gpu_replay
