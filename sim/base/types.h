// SPDX-License-Identifier: Apache-2.0
// The index types of traces, policies and ledgers.
#pragma once

#include <cstdint>
#include <limits>

namespace kvspan {

using TokenIndex = std::int32_t;
using RowIndex = std::int64_t;
using TokenCount = std::int64_t;

inline constexpr TokenCount kAll = std::numeric_limits<TokenCount>::max();

}  // namespace kvspan
