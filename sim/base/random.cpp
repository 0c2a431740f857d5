// SPDX-License-Identifier: Apache-2.0
#include "sim/base/random.h"

namespace kvspan {

std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27U)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31U);
}

double uniform(std::uint64_t seed, std::initializer_list<std::int64_t> keys) {
  std::uint64_t x = splitmix64(seed);
  for (const std::int64_t key : keys) x = splitmix64(x ^ static_cast<std::uint64_t>(key));
  return (static_cast<double>(x >> 12U) + 0.5) * 0x1p-52;
}

}  // namespace kvspan
