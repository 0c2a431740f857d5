// SPDX-License-Identifier: Apache-2.0
// What kvspan_cuda.so, the module of all that needs CUDA (tracegen/cuda/module.h), offers to a
// replay. It is C++ on both sides of one build, which whoever loads it has checked.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/memory.h"
#include "gpu_replay/score/score_layer.h"

namespace kvspan::gpu_replay {

struct ReplayModule {
  // make_cuda_memory() and make_cuda_pool() of memory.h, attend_on_cuda() of attend.h.
  std::unique_ptr<DeviceMemory> (*make_memory)(std::int64_t granule, std::int64_t limit) = nullptr;
  std::unique_ptr<DeviceMemory> (*make_pool)(std::int64_t limit) = nullptr;
  double (*attend)(const DecodeRow& row, DecodeResult& out) = nullptr;
  // load_scores_on_cuda() of score_layer.h; the device's name.
  LoadScores load_scores = nullptr;
  std::string (*device_name)() = nullptr;
};

// The module is never unloaded. REQUIRES: `file` is of this build. Errors: DeviceError when it
// offers nothing of this.
[[nodiscard]] const ReplayModule& load_replay_module(const std::filesystem::path& file);

}  // namespace kvspan::gpu_replay

extern "C" const kvspan::gpu_replay::ReplayModule* kvspan_replay_module();
