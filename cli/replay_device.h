// SPDX-License-Identifier: Apache-2.0
// Where `replay` allocates and attends, and `run` measures.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/memory.h"
#include "sim/replay/score_pass.h"

namespace kvspan::cli {

struct ReplayDevice {
  bool cuda = false;
  std::string instead;  // why auto took the host; empty: it did not, or there is no GPU to speak of
  // granule: 0: the least that is backed together; of no meaning where memory is allocated.
  // Errors: ConfigError for one that cannot be.
  std::function<std::unique_ptr<gpu_replay::DeviceMemory>(std::int64_t granule, std::int64_t limit)>
      make_memory;
  // Empty: on the host.
  std::function<double(const gpu_replay::DecodeRow& row, gpu_replay::DecodeResult& out)> attend;
};

// Who takes retained attention and output error in `run`.
struct MeasuringDevice {
  std::shared_ptr<ScorePass> scores;  // null: the CPU, on the way
  std::string instead;                // why auto took it; empty: it did not
};

// name: cpu, auto, cuda or host (the device's pass, on the CPU). Errors: DeviceError for cuda where
// there is no GPU or no module.
[[nodiscard]] MeasuringDevice measuring_device(const std::string& name);

// name: auto, cuda or host; mapped: or else allocated (see DeviceMemory). Errors: DeviceError for
// cuda where there is no GPU or no module.
[[nodiscard]] ReplayDevice replay_device(const std::string& name, bool mapped);

}  // namespace kvspan::cli
