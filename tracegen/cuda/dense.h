// SPDX-License-Identifier: Apache-2.0
// Dense products by cuBLAS. Private to tracegen/cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>

#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/device.h"

namespace kvspan::tracegen {

class DenseProducts {
 public:
  // Launches on `stream`. Errors: DeviceError.
  DenseProducts(const CudaStream& stream, DeviceType type);
  DenseProducts(const DenseProducts&) = delete;
  DenseProducts& operator=(const DenseProducts&) = delete;
  ~DenseProducts() { cublasDestroy(handle_); }

  // y [rows, outputs] = x [rows, inputs] W^T + beta y, W [outputs, inputs]; x and W in the type.
  void multiply(const void* x, std::int64_t rows, const std::byte* w, std::int64_t outputs,
                std::int64_t inputs, float beta, float* y) const;

 private:
  cublasHandle_t handle_ = nullptr;
  DeviceType type_;
};

}  // namespace kvspan::tracegen
