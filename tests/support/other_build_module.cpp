// SPDX-License-Identifier: Apache-2.0
// A CUDA module of another build.
#include "tracegen/cuda/module.h"

extern "C" const kvspan::tracegen::CudaModule* kvspan_cuda_module() {
  static const kvspan::tracegen::CudaModule module{.build = "kvspan 0.0.0 (then; elsewhere)"};
  return &module;
}
