// SPDX-License-Identifier: Apache-2.0
// Shared by policies that send entries to the host.
#pragma once

#include <functional>

#include "sim/policy/registry.h"

namespace kvspan::policies {

// Of predictions for it: the closed form has no entries on the host.
inline constexpr const char* kHostNote =
    "bytes are the device's, but the predicted footprint counts entries on the host too";

// A store that moves entries to the host at the ends of the passes that are `due`: at the first,
// all that are there; later, the newborns. One copy of each entry, in {"host", 0, e}.
//   payload  device bytes of a head after a pass: none once it is due
[[nodiscard]] Storing host_storing(std::function<bool(const Pass&)> due, const Geometry& geometry);

}  // namespace kvspan::policies
