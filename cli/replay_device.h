// SPDX-License-Identifier: Apache-2.0
// Where `replay` allocates and attends.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/memory.h"

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

// name: auto, cuda or host; mapped: or else allocated (see DeviceMemory). Errors: DeviceError for
// cuda where there is no GPU or no module.
[[nodiscard]] ReplayDevice replay_device(const std::string& name, bool mapped);

}  // namespace kvspan::cli
