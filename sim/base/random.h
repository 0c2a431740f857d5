// SPDX-License-Identifier: Apache-2.0
// Random numbers that are functions of their keys: the same on every machine, in any order.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace kvspan {

// Counter-based random numbers: splitmix64 (Sebastiano Vigna, public domain) of the keys, so that
// threads and order do not matter. uniform() lies in (0, 1).
[[nodiscard]] std::uint64_t splitmix64(std::uint64_t x);
[[nodiscard]] double uniform(std::uint64_t seed, std::initializer_list<std::int64_t> keys);

}  // namespace kvspan
