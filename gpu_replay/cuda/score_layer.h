// SPDX-License-Identifier: Apache-2.0
// The score pass of one layer on the device.
#pragma once

#include "gpu_replay/score/score_layer.h"

namespace kvspan::gpu_replay {

// Uploads keys, values and deaths. Errors: DeviceError, also for vectors beyond kMostScoreDim.
[[nodiscard]] std::unique_ptr<ScoreLayer> load_scores_on_cuda(const ScoreInput& input);

}  // namespace kvspan::gpu_replay
