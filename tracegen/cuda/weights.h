// SPDX-License-Identifier: Apache-2.0
// A model's weights on the device: widened on the host and uploaded a layer at a time. Private to
// tracegen/cuda.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <tbb/task_arena.h>

#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/buffers.h"
#include "tracegen/cuda/device.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// Parts of a layer's weights in one allocation; a null pointer: the model has none.
struct LayerOnDevice {
  CudaMemory memory;
  int layer = -1;                                                               // that is loaded
  std::byte *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr;  // dense type
  float *attention_norm = nullptr, *mlp_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  float *qkv_bias = nullptr, *o_bias = nullptr, *gate_up_bias = nullptr, *down_bias = nullptr;
};

class DeviceWeights {
 public:
  // Copies on `stream`; widens in `arena`. What is referred to outlives it.
  DeviceWeights(const Checkpoint& checkpoint, DeviceType dense_type, const CudaStream& stream,
                tbb::task_arena& arena, Allocations& memory)
      : checkpoint_(checkpoint),
        spec_(checkpoint.spec()),
        dense_type_(dense_type),
        stream_(stream),
        arena_(arena),
        memory_(memory) {}

  // Places: for all layers, if they are to stay and fit beside what cuBLAS and the context need,
  // else one for each layer in turn. Errors: DeviceError.
  void reserve(bool stay);
  [[nodiscard]] bool all_layers() const { return layers_.size() > 1; }

  // What is not on the device is uploaded. Errors: DeviceError.
  const LayerOnDevice& layer(int layer);
  void load_head();
  [[nodiscard]] const std::byte* head() const { return head_.as<std::byte>(); }  // dense type
  [[nodiscard]] const float* final_norm() const { return final_norm_.as<float>(); }

 private:
  // The pinned buffer that is free next, and its event to record after the copy out of it.
  struct Staging {
    float* floats;
    CudaEvent* copied;
  };

  template <typename Use>
  void for_parts(LayerOnDevice& l, const LayerWeights& w, const Use& use) const;
  [[nodiscard]] std::int64_t layer_bytes() const;
  [[nodiscard]] std::int64_t head_bytes() const;
  void lay_out(LayerOnDevice& l, const LayerWeights& w) const;
  void upload_matrices(const LayerWeights& w, const LayerOnDevice& l);
  void upload_vectors(const LayerWeights& w, const LayerOnDevice& l);
  Staging next_staging();
  void upload(const std::vector<float>& values, float* to, std::int64_t count);
  void upload(const WeightMatrix& matrix, std::byte* to);

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  DeviceType dense_type_;
  const CudaStream& stream_;
  tbb::task_arena& arena_;
  Allocations& memory_;
  std::array<CudaMemory, 2> staging_;
  std::array<CudaEvent, 2> stage_copied_;
  std::size_t stage_ = 0;
  CudaMemory staged_;
  std::vector<LayerOnDevice> layers_;  // all, or one in turn
  CudaMemory head_, final_norm_;
  bool head_loaded_ = false;
};

}  // namespace kvspan::tracegen
