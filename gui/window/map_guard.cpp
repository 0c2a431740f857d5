// SPDX-License-Identifier: Apache-2.0
#include "gui/window/map_guard.h"

#include <atomic>
#include <csignal>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

namespace kvspan::gui {
namespace {

std::atomic<int> lost{0};
std::uintptr_t page_bytes = 4096;

// Only what is allowed in a signal handler: mmap is a plain system call.
void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  void* page = reinterpret_cast<void*>(address & ~(page_bytes - 1));
  const bool mapped =
      info->si_code == BUS_ADRERR &&
      mmap(page, page_bytes, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == page;
  if (!mapped) {
    std::signal(SIGBUS, SIG_DFL);  // happens again on return, and then ends the process
    return;
  }
  lost.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

void guard_mapped_files() {
  page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

int pages_lost() { return lost.load(std::memory_order_relaxed); }

}  // namespace kvspan::gui
