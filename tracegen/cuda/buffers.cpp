// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/buffers.h"

#include <fmt/format.h>

namespace kvspan::tracegen {

CudaMemory Allocations::allocate(MemoryKind kind, std::int64_t bytes, const std::string& purpose) {
  CudaMemory memory(kind, bytes, purpose);
  (kind == MemoryKind::device ? device_bytes_ : pinned_bytes_) += bytes;
  return memory;
}

void Allocations::reserve(CudaMemory& memory, std::int64_t bytes, const std::string& purpose) {
  if (memory.bytes() >= bytes) return;
  device_bytes_ -= memory.bytes();
  memory = {};
  memory = allocate(MemoryKind::device, bytes, purpose);
}

void Allocations::reserve(Mirror& mirror, std::int64_t floats, const std::string& purpose) {
  if (mirror.device.bytes() >= floats * kFloatBytes) return;
  device_bytes_ -= mirror.device.bytes();
  pinned_bytes_ -= mirror.host.bytes();
  mirror = {};
  mirror.device = allocate(MemoryKind::device, floats * kFloatBytes, purpose);
  mirror.host = allocate(MemoryKind::pinned, floats * kFloatBytes, purpose);
}

void reserve_wave(Slot& slot, const ModelSpec& spec, std::int64_t rows, Allocations& memory) {
  const std::string purpose = fmt::format("a wave of {} rows", rows);
  const auto pairs = static_cast<std::int64_t>(spec.rope.inverse_frequencies.size());
  memory.reserve(slot.hidden, rows * spec.hidden, purpose);
  memory.reserve(slot.cosine, rows * pairs, purpose);
  memory.reserve(slot.sine, rows * pairs, purpose);
  memory.reserve(slot.q, rows * spec.q_width(), purpose);
  memory.reserve(slot.k, rows * spec.kv_width(), purpose);
  memory.reserve(slot.v, rows * spec.kv_width(), purpose);
}

void reserve_scores(Slot& slot, const ModelSpec& spec, std::int64_t rows, const Emit& emit,
                    Allocations& memory) {
  const std::int64_t heads = rows * spec.query_heads;
  const std::string purpose = fmt::format("scores of {} rows, top {}", rows, emit.top_k);
  memory.reserve(slot.prob, heads * emit.top_k, purpose);
  memory.reserve(slot.index, heads * emit.top_k, purpose);
  memory.reserve(slot.lse, emit.lse ? heads : 0, purpose);
}

void copy_mirror(const Mirror& mirror, std::int64_t floats, cudaMemcpyKind kind,
                 const CudaStream& stream) {
  void* const host = mirror.on_host();
  void* const device = mirror.on_device();
  const bool up = kind == cudaMemcpyHostToDevice;
  KVSPAN_CUDA_CHECK(cudaMemcpyAsync(up ? device : host, up ? host : device,
                                    static_cast<std::size_t>(floats * kFloatBytes), kind,
                                    stream.get()));
}

}  // namespace kvspan::tracegen
