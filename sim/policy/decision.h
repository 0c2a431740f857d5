// SPDX-License-Identifier: Apache-2.0
// What leaves, and what changes, at the end of one pass; and how an entry may be held.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/base/types.h"

namespace kvspan {

// How an entry is held: bytes of its payload on the device and on the host. Index 0 of a policy's
// list is how entries are born; {"host", 0, e} is offloaded, {"copy", e, e} a device copy of a host
// entry, {"int2", e / 8 + scales, 0} quantised.
struct Representation {
  std::string name;
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = 0;
  int entries = -1;  // counts as this many device entries; -1: one if it has device bytes
};

// From `row` on, the entry is held as `representation`.
struct Change {
  RowIndex row = 0;
  int head = 0;
  TokenIndex token = 0;
  int representation = 0;
};

struct Eviction {
  int head = 0;
  TokenIndex token = 0;
  float score = 0;        // NaN where no score was taken
  std::int32_t rank = 0;  // 0: first to go
};

// The vectors of an entry as they are held from the end of this pass on; empty: unchanged.
struct Rewrite {
  int kv_head = 0;
  TokenIndex token = 0;
  std::vector<float> k, v;
};

// Survivors of a stored head that come to lie last in its cache, in this order (see CacheOrder).
struct Arrangement {
  int head = 0;
  std::vector<TokenIndex> tokens;
};

// What leaves, and what changes, at the end of one pass of one layer.
struct Decision {
  std::vector<Eviction> evictions;  // by head, then token
  std::vector<Change> changes;
  std::vector<Rewrite> rewrites;
  std::vector<Arrangement> arrangements;
  std::int64_t decided = 0;    // (head) decisions in which somebody had to leave
  std::int64_t undecided = 0;  // of these: the margin is below the slack it rests on
};

}  // namespace kvspan
