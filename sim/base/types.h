// SPDX-License-Identifier: Apache-2.0
// The index types of traces, policies and ledgers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvspan {

using TokenIndex = std::int32_t;
using RowIndex = std::int64_t;
using TokenCount = std::int64_t;

inline constexpr TokenCount kAll = std::numeric_limits<TokenCount>::max();

// A count that is known not to be negative, as a place in a container.
[[nodiscard]] constexpr std::size_t index(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

}  // namespace kvspan
