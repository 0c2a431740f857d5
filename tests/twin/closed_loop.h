// SPDX-License-Identifier: Apache-2.0
// Brute-force twin of a model under a policy: a forward pass of plain loops in double precision, in
// which every row reads what the twins of evictors and stores (catalogue_stores.h) hold, as they
// hold it, and goes on from what it read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/twin/catalogue_stores.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::twin {

struct ClosedLoop {
  std::vector<double> nll;  // [ids behind the prompt]
  stores::Outcome held;     // deaths, near ties
};

//   frequencies  [head_dim / 2] angles of the rotation a position
//   policy       as stores::simulate(); "full", or "streaming_llm+none", hold entries as they are
//   by_place     keys and queries are rotated to their places in the cache
[[nodiscard]] ClosedLoop read_closed(const tracegen::Checkpoint& checkpoint,
                                     const std::vector<double>& frequencies,
                                     const std::vector<std::int32_t>& ids, const Plan& plan,
                                     const std::string& policy,
                                     const stores::Parameters& parameters, bool by_place);

}  // namespace kvspan::twin
