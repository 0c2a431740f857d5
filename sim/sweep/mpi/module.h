// SPDX-License-Identifier: Apache-2.0
// What kvspan_mpi.so, the one file that is compiled with MPI, offers to the program that loads it:
// plain functions, so that a cluster can compile the module alone, with its own MPI.
#pragma once

#include <cstdint>

namespace kvspan::sweep {

struct MpiModule {
  static constexpr std::int64_t kVersion = 1;
  std::int64_t version = kVersion;  // stays the first member
  const char* library = nullptr;    // "Open MPI 4.1.4"
  // Whether a launcher of this MPI has started the process. Elsewhere enter() may end it.
  bool (*started)() = nullptr;
  // Initialises MPI; returns null, or why that is not possible.
  const char* (*enter)(int* rank, int* size) = nullptr;
  // Those of rank 0 become everybody's. Collective, as wait() and leave() are.
  void (*share)(void* bytes, std::int64_t size) = nullptr;
  // Adds to the counter; what it was before. From any thread.
  std::int64_t (*take)(std::int64_t count) = nullptr;
  void (*wait)() = nullptr;
  void (*leave)() = nullptr;
  // In place of leave(): the process ends, and MPI ends the others.
  void (*desert)() = nullptr;
};

}  // namespace kvspan::sweep

// The module's one entry.
extern "C" const kvspan::sweep::MpiModule* kvspan_mpi_module();
