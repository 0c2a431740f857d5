// SPDX-License-Identifier: Apache-2.0
// MPI when it is wanted: only a sweep that an MPI launcher has started loads the module.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "sim/sweep/team.h"

namespace kvspan::sweep {

struct Joined {
  std::unique_ptr<Team> team;  // null: there is none
  std::string library;         // of a team: "Open MPI v4.1.4"
  std::string why_not;         // without one, in a process that a launcher has started with others
};

// The team of the processes that were started with this one, if an MPI launcher says so by its
// variables, and the module is there and of that MPI.
[[nodiscard]] Joined join_mpi(const std::function<const char*(const char*)>& variable);

}  // namespace kvspan::sweep
