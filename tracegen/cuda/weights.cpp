// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/weights.h"

#include <algorithm>
#include <type_traits>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "tracegen/cuda/layer.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kStagingBytes = std::int64_t{32} << 20;   // twice
constexpr std::int64_t kReserveBytes = std::int64_t{512} << 20;  // left to cuBLAS and the context

std::int64_t aligned(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

std::int64_t free_bytes() {
  std::size_t free = 0, total = 0;
  KVSPAN_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

}  // namespace

// Calls use(part, bytes) for each part of a layer; parts start at multiples of 256 bytes.
template <typename Use>
void DeviceWeights::for_parts(LayerOnDevice& l, const LayerWeights& w, const Use& use) const {
  const std::int64_t element = element_bytes(dense_type_);
  const std::int64_t hidden = spec_.hidden, inner = spec_.intermediate;
  const auto floats = [&](float*& part, bool some, std::int64_t count) {
    use(part, some ? count * kFloatBytes : 0);
  };
  use(l.qkv, (spec_.q_width() + 2 * spec_.kv_width()) * hidden * element);
  use(l.o, hidden * spec_.q_width() * element);
  use(l.gate_up, 2 * inner * hidden * element);
  use(l.down, hidden * inner * element);
  floats(l.attention_norm, true, hidden);
  floats(l.mlp_norm, true, hidden);
  floats(l.q_norm, !w.q_norm.empty(), spec_.head_dim);
  floats(l.k_norm, !w.k_norm.empty(), spec_.head_dim);
  floats(l.qkv_bias, !w.q_bias.empty() || !w.k_bias.empty() || !w.v_bias.empty(),
         (spec_.q_width() + 2 * spec_.kv_width()));
  floats(l.o_bias, !w.o_bias.empty(), hidden);
  floats(l.gate_up_bias, !w.gate_bias.empty() || !w.up_bias.empty(), 2 * inner);
  floats(l.down_bias, !w.down_bias.empty(), hidden);
}

std::int64_t DeviceWeights::layer_bytes() const {  // of the largest
  std::int64_t most = 0;
  for (int l = 0; l < spec_.layers; ++l) {
    LayerOnDevice parts;
    std::int64_t bytes = 0;
    for_parts(parts, checkpoint_.layer(l),
              [&](auto& /*part*/, std::int64_t part_bytes) { bytes += aligned(part_bytes); });
    most = std::max(most, bytes);
  }
  return most;
}

std::int64_t DeviceWeights::head_bytes() const {
  return spec_.vocabulary * spec_.hidden * element_bytes(dense_type_);
}

void DeviceWeights::reserve(bool stay) {
  for (CudaMemory& staging : staging_)
    staging = memory_.allocate(MemoryKind::pinned, kStagingBytes, "weights on their way");
  if (dense_type_ != DeviceType::f32)
    staged_ = memory_.allocate(MemoryKind::device, kStagingBytes, "weights on their way");
  final_norm_ = memory_.allocate(MemoryKind::device, spec_.hidden * kFloatBytes, "the output head");
  const std::int64_t all = spec_.layers * layer_bytes() + head_bytes();
  layers_.resize(
      stay && all + kReserveBytes <= free_bytes() ? static_cast<std::size_t>(spec_.layers) : 1);
  for (LayerOnDevice& layer : layers_)
    layer.memory = memory_.allocate(MemoryKind::device, layer_bytes(), "the weights of a layer");
  head_ = memory_.allocate(MemoryKind::device, head_bytes(), "the output head");
}

void DeviceWeights::lay_out(LayerOnDevice& l, const LayerWeights& w) const {
  std::int64_t offset = 0;
  for_parts(l, w, [&](auto& part, std::int64_t bytes) {
    using Part = std::remove_reference_t<decltype(*part)>;
    part = bytes == 0 ? nullptr : reinterpret_cast<Part*>(l.memory.as<std::byte>() + offset);
    offset += aligned(bytes);
  });
}

const LayerOnDevice& DeviceWeights::layer(int layer) {
  LayerOnDevice& l = layers_[layers_.size() == 1 ? 0 : static_cast<std::size_t>(layer)];
  if (l.layer == layer) return l;
  const LayerWeights& w = checkpoint_.layer(layer);
  l.layer = -1;  // until all of it is there
  lay_out(l, w);
  upload_matrices(w, l);
  upload_vectors(w, l);
  checkpoint_.release(layer);
  l.layer = layer;
  return l;
}

void DeviceWeights::upload_matrices(const LayerWeights& w, const LayerOnDevice& l) {
  const std::int64_t element = element_bytes(dense_type_);
  upload(w.q, l.qkv);
  upload(w.k, l.qkv + spec_.q_width() * spec_.hidden * element);
  upload(w.v, l.qkv + (spec_.q_width() + spec_.kv_width()) * spec_.hidden * element);
  upload(w.o, l.o);
  upload(w.gate, l.gate_up);
  upload(w.up, l.gate_up + std::int64_t{spec_.intermediate} * spec_.hidden * element);
  upload(w.down, l.down);
}

void DeviceWeights::upload_vectors(const LayerWeights& w, const LayerOnDevice& l) {
  upload(w.attention_norm, l.attention_norm, spec_.hidden);
  upload(w.mlp_norm, l.mlp_norm, spec_.hidden);
  upload(w.q_norm, l.q_norm, spec_.head_dim);
  upload(w.k_norm, l.k_norm, spec_.head_dim);
  if (l.qkv_bias != nullptr) {
    upload(w.q_bias, l.qkv_bias, spec_.q_width());
    upload(w.k_bias, l.qkv_bias + spec_.q_width(), spec_.kv_width());
    upload(w.v_bias, l.qkv_bias + spec_.q_width() + spec_.kv_width(), spec_.kv_width());
  }
  upload(w.o_bias, l.o_bias, spec_.hidden);
  if (l.gate_up_bias != nullptr) {
    upload(w.gate_bias, l.gate_up_bias, spec_.intermediate);
    upload(w.up_bias, l.gate_up_bias + spec_.intermediate, spec_.intermediate);
  }
  upload(w.down_bias, l.down_bias, spec_.hidden);
}

void DeviceWeights::load_head() {
  if (head_loaded_) return;
  upload(checkpoint_.head(), head_.as<std::byte>());
  upload(checkpoint_.final_norm(), final_norm_.as<float>(), spec_.hidden);
  head_loaded_ = true;
}

DeviceWeights::Staging DeviceWeights::next_staging() {
  stage_ = (stage_ + 1) % staging_.size();
  stage_copied_[stage_].wait();
  return {staging_[stage_].as<float>(), &stage_copied_[stage_]};
}

// A vector of `count` floats; zeros if it is empty; nothing if there is no place for it.
void DeviceWeights::upload(const std::vector<float>& values, float* to, std::int64_t count) {
  if (to == nullptr) return;
  const Staging staging = next_staging();
  if (values.empty())
    std::fill_n(staging.floats, count, 0.0F);
  else
    std::copy_n(values.data(), count, staging.floats);
  KVSPAN_CUDA_CHECK(cudaMemcpyAsync(to, staging.floats,
                                    static_cast<std::size_t>(count * kFloatBytes),
                                    cudaMemcpyHostToDevice, stream_.get()));
  staging.copied->record(stream_);
}

// A matrix, in the type of the dense products: widened on the host, narrowed on the device.
void DeviceWeights::upload(const WeightMatrix& matrix, std::byte* to) {
  const std::int64_t rows_at_once = kStagingBytes / (matrix.columns * kFloatBytes);
  if (rows_at_once == 0)
    throw DeviceError(fmt::format("{}: a row of {} weights is more than {} bytes", matrix.name,
                                  matrix.columns, kStagingBytes));
  for (std::int64_t row = 0; row < matrix.rows; row += rows_at_once) {
    const std::int64_t rows = std::min(rows_at_once, matrix.rows - row);
    const std::int64_t count = rows * matrix.columns;
    const Staging staging = next_staging();
    arena_.execute([&] {
      tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, rows, 64), [&](const auto& range) {
        widen_rows(matrix, row + range.begin(), range.end() - range.begin(),
                   staging.floats + range.begin() * matrix.columns);
      });
    });
    std::byte* const part = to + row * matrix.columns * element_bytes(dense_type_);
    void* const via = dense_type_ == DeviceType::f32 ? part : staged_.as<std::byte>();
    KVSPAN_CUDA_CHECK(cudaMemcpyAsync(via, staging.floats,
                                      static_cast<std::size_t>(count * kFloatBytes),
                                      cudaMemcpyHostToDevice, stream_.get()));
    staging.copied->record(stream_);
    if (via != part)
      narrow_cuda(static_cast<const float*>(via), count, dense_type_, part, stream_.get());
  }
}

}  // namespace kvspan::tracegen
