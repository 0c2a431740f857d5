// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/module.h"

#include "tracegen/cuda/runner.h"

extern "C" __attribute__((visibility("default"))) const kvspan::tracegen::CudaModule*
kvspan_cuda_module() {
  static const std::string build = kvspan::tracegen::cuda_module_build();
  static const kvspan::tracegen::CudaModule module{
      .build = build.c_str(), .make_runner = kvspan::tracegen::make_device_runner};
  return &module;
}
