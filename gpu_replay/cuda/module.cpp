// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/cuda/module.h"

#include "gpu_replay/cuda/attend.h"
#include "gpu_replay/cuda/memory.h"
#include "gpu_replay/cuda/score_layer.h"
#include "tracegen/cuda/device.h"

extern "C" __attribute__((visibility("default"))) const kvspan::gpu_replay::ReplayModule*
kvspan_replay_module() {
  static const kvspan::gpu_replay::ReplayModule module{
      .make_memory = kvspan::gpu_replay::make_cuda_memory,
      .make_pool = kvspan::gpu_replay::make_cuda_pool,
      .attend = kvspan::gpu_replay::attend_on_cuda,
      .load_scores = kvspan::gpu_replay::load_scores_on_cuda,
      .device_name = kvspan::tracegen::device_name};
  return &module;
}
