# SPDX-License-Identifier: Apache-2.0
# All that the module kvspan_cuda.so is made of, but its entry; tests compile the same as C++. Each
# attention/*.cu is one type and head size: they compile side by side.
set(kvspan_cuda_sources
  attention.cu
  attention/d64_f16.cu
  attention/d64_bf16.cu
  attention/d64_f32.cu
  attention/d128_f16.cu
  attention/d128_bf16.cu
  attention/d128_f32.cu
  attention/d256_f16.cu
  attention/d256_bf16.cu
  attention/d256_f32.cu
  buffers.cpp
  dense.cpp
  device.cpp
  layer.cu
  runner.cpp
  weights.cpp)
list(TRANSFORM kvspan_cuda_sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
