// SPDX-License-Identifier: Apache-2.0
// The units of a sweep are handed out by one number in the memory of rank 0, which everybody adds
// to (MPI_Fetch_and_op), whatever rank 0 is doing: on one node that is an instruction on shared
// memory, between nodes the network card's work or, where it cannot (TCP), that of MPI inside rank
// 0, for which a thread of it looks in a thousand times a second.
#include "sim/sweep/mpi/module.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mpi.h>
#include <mutex>
#include <thread>

namespace kvspan::sweep {
namespace {

constexpr std::chrono::milliseconds kPause(1);

// MPI_THREAD_SERIALIZED: one call at a time.
std::mutex g_mutex;
MPI_Win g_window = MPI_WIN_NULL;
std::jthread g_helper;

bool started() {
#ifdef OPEN_MPI
  return std::getenv("PMIX_RANK") != nullptr;
#else
  return std::getenv("PMI_RANK") != nullptr || std::getenv("PMIX_RANK") != nullptr;
#endif
}

// MPI's own waiting keeps a core busy, for as long as the slowest process works.
void wait_for(MPI_Request request) {
  for (int done = 0;;) {
    {
      const std::lock_guard lock(g_mutex);
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    }
    if (done != 0) return;
    std::this_thread::sleep_for(kPause);
  }
}

void help(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    {
      const std::lock_guard lock(g_mutex);
      int found = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
    }
    std::this_thread::sleep_for(kPause);
  }
}

bool on_one_node(int size) {
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  int here = 0;
  MPI_Comm_size(node, &here);
  MPI_Comm_free(&node);
  int least = 0;
  MPI_Allreduce(&here, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  return least == size;
}

const char* enter(int* rank, int* size) {
#if defined(OPEN_MPI) && OMPI_MAJOR_VERSION < 5
  // Of its own accord Open MPI 4.1 takes the component "rdma" between nodes that have TCP only, and
  // fails to make a window. Who has chosen another one keeps it.
  setenv("OMPI_MCA_osc", "^rdma", 0);
#endif
  int threads = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads) != MPI_SUCCESS)
    return "MPI_Init_thread failed";
  MPI_Comm_rank(MPI_COMM_WORLD, rank);
  MPI_Comm_size(MPI_COMM_WORLD, size);
  if (threads < MPI_THREAD_SERIALIZED) {
    MPI_Finalize();
    return "this MPI knows no threads";
  }
  std::int64_t* counter = nullptr;
  const MPI_Aint bytes = *rank == 0 ? sizeof(*counter) : 0;
  MPI_Win_allocate(bytes, sizeof(*counter), MPI_INFO_NULL, MPI_COMM_WORLD, &counter, &g_window);
  if (*rank == 0) {
    MPI_Win_lock(MPI_LOCK_EXCLUSIVE, 0, 0, g_window);
    *counter = 0;
    MPI_Win_unlock(0, g_window);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Win_lock_all(0, g_window);
  if (!on_one_node(*size) && *rank == 0) g_helper = std::jthread(help);
  return nullptr;
}

void share(void* bytes, std::int64_t size) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 30U;  // counts are int
  for (std::int64_t at = 0; at < size; at += kPiece) {
    MPI_Request request = MPI_REQUEST_NULL;
    {
      const std::lock_guard lock(g_mutex);
      MPI_Ibcast(static_cast<char*>(bytes) + at, static_cast<int>(std::min(kPiece, size - at)),
                 MPI_BYTE, 0, MPI_COMM_WORLD, &request);
    }
    wait_for(request);
  }
}

std::int64_t take(std::int64_t count) {
  const std::lock_guard lock(g_mutex);
  std::int64_t before = 0;
  MPI_Fetch_and_op(&count, &before, MPI_INT64_T, 0, 0, MPI_SUM, g_window);
  MPI_Win_flush(0, g_window);
  return before;
}

void wait() {
  MPI_Request request = MPI_REQUEST_NULL;
  {
    const std::lock_guard lock(g_mutex);
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
  }
  wait_for(request);
}

void desert() { g_helper = {}; }

void leave() {
  wait();  // rank 0 helps until nobody takes any more
  desert();
  MPI_Win_unlock_all(g_window);
  MPI_Win_free(&g_window);
  MPI_Finalize();
}

const char* library() {
  static char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  // "Open MPI v4.1.4, package: Debian OpenMPI, ..."; other libraries write several lines.
  *std::find_if(text, text + length, [](char c) { return c == ',' || c == '\n'; }) = '\0';
  return text;
}

}  // namespace
}  // namespace kvspan::sweep

extern "C" __attribute__((visibility("default"))) const kvspan::sweep::MpiModule*
kvspan_mpi_module() {
  using namespace kvspan::sweep;
  static const MpiModule module{
      MpiModule::kVersion, library(), started, enter, share, take, wait, leave, desert};
  return &module;
}
