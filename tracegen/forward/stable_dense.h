// SPDX-License-Identifier: Apache-2.0
// The dense product of rows that must not notice each other: every element is summed in one order,
// whichever rows share the call, so that a batch of sequences gives what each gives alone. (The
// library's product, kernels::gemm, promises no such thing.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include <tbb/enumerable_thread_specific.h>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

class StableDense {
 public:
  // keeps: weights stay in memory in the order of the product, from their first use on, packed
  // where stays_packed() (forward/packed_weights.h), else as fp32; without it they are widened for
  // every call from how they are stored. The bits are the same.
  explicit StableDense(bool keeps) : keeps_(keeps) {}

  // y [rows, ldy] = x [rows, columns] W^T + bias; `bias` may be empty. Work is divided among the
  // calling TBB arena's threads. From any arena; in one of them no other call meanwhile.
  // REQUIRES: the weights outlive this.
  void operator()(const float* x, std::int64_t rows, const WeightMatrix& w,
                  const std::vector<float>& bias, float* y, std::int64_t ldy);

  // What the weights of a model take where they are kept.
  [[nodiscard]] static std::int64_t kept_bytes(const Checkpoint& checkpoint);
  [[nodiscard]] bool keeps() const { return keeps_; }

 private:
  // Of one thread.
  struct Room {
    std::vector<float> widened, packed, sums;
  };

  bool keeps_;
  tbb::enumerable_thread_specific<Room> rooms_;
  std::mutex fresh_;                                     // held while weights are packed to be kept
  std::map<const std::byte*, std::vector<float>> kept_;  // by a matrix' bytes: its tiles
};

}  // namespace kvspan::tracegen
