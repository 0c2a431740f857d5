// SPDX-License-Identifier: Apache-2.0
// How a request's memory grows. Private to fleet/.
#pragma once

#include <cstdint>

#include "sim/fleet/fleet.h"

namespace kvspan {

// The first token after `token`, up to `last`, that needs more than `bytes`; last + 1: none does.
[[nodiscard]] std::int64_t next_growth(const RequestMemory& memory, std::int64_t prompt,
                                       std::int64_t token, std::int64_t last, std::int64_t bytes);
// The most that it needs at any time.
[[nodiscard]] std::int64_t most_bytes(const RequestMemory& memory, const FleetRequest& request);

}  // namespace kvspan
