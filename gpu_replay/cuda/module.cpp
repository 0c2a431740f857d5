// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/cuda/module.h"

#include "gpu_replay/cuda/attend.h"
#include "gpu_replay/cuda/memory.h"

extern "C" __attribute__((visibility("default"))) const kvspan::gpu_replay::ReplayModule*
kvspan_replay_module() {
  static const kvspan::gpu_replay::ReplayModule module{
      .make_memory = kvspan::gpu_replay::make_cuda_memory,
      .make_pool = kvspan::gpu_replay::make_cuda_pool,
      .attend = kvspan::gpu_replay::attend_on_cuda};
  return &module;
}
