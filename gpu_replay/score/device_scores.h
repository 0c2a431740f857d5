// SPDX-License-Identifier: Apache-2.0
// The score pass of a replay on a device.
#pragma once

#include <memory>
#include <string>

#include "gpu_replay/score/score_layer.h"

namespace kvspan::gpu_replay {

// `load` is the device's, `name` what it is called. Layers are taken one at a time. Rows of which a
// vector reads so little that terms of the whole row underflow are taken on the CPU.
[[nodiscard]] std::shared_ptr<ScorePass> make_device_scores(LoadScores load, std::string name);

}  // namespace kvspan::gpu_replay
