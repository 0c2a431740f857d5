// SPDX-License-Identifier: Apache-2.0
// What is to be said of death rows that come from a file: whose they are, and whether a method
// could have them.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// A --lifetimes file says which trace, prompt and chunk it is of.
// Errors: TraceError when that is not the trace that is replayed.
[[nodiscard]] std::vector<std::string> notes_of_death_rows(const std::string& file,
                                                           const std::set<RowIndex>& rows,
                                                           const Geometry& geometry);

}  // namespace kvspan::policies
