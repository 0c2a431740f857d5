// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/dense.h"

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::tracegen {
namespace {

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(
        fmt::format("cuBLAS: {} failed with status {}", call, static_cast<int>(status)));
}

}  // namespace

DenseProducts::DenseProducts(const CudaStream& stream, DeviceType type) : type_(type) {
  check_cublas(cublasCreate(&handle_), "cublasCreate");
  check_cublas(cublasSetStream(handle_, stream.get()), "cublasSetStream");
}

// cuBLAS is column-major: it is told of y^T = W x^T.
void DenseProducts::multiply(const void* x, std::int64_t rows, const std::byte* w,
                             std::int64_t outputs, std::int64_t inputs, float beta,
                             float* y) const {
  const float alpha = 1;
  const cudaDataType_t type = type_ == DeviceType::f32 ? CUDA_R_32F : CUDA_R_16BF;
  check_cublas(
      cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(outputs),
                   static_cast<int>(rows), static_cast<int>(inputs), &alpha, w, type,
                   static_cast<int>(inputs), x, type, static_cast<int>(inputs), &beta, y,
                   CUDA_R_32F, static_cast<int>(outputs), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

}  // namespace kvspan::tracegen
