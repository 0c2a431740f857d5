// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/host_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <malloc.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

// What is left to others of a machine without a limit, and how often it is asked what it has.
constexpr std::int64_t kSpare = std::int64_t{64} << 20;

std::byte* pointer(Address address) { return reinterpret_cast<std::byte*>(address); }

}  // namespace

std::int64_t HostMemory::page() { return sysconf(_SC_PAGESIZE); }

HostMemory::HostMemory(std::int64_t granule, std::int64_t limit)
    : HostBytes(granule == 0 ? page() : granule, limit) {
  if (granule % page() != 0) {
    throw ConfigError(fmt::format("granule: found {}, expected a multiple of a page, {}",
                                  human_bytes(granule), human_bytes(page())));
  }
}

HostMemory::~HostMemory() {
  for (const auto& [begin, range] : ranges_) munmap(pointer(begin), index(range.bytes));
}

std::string HostMemory::name() const {
  return fmt::format("host, pages of {}", human_bytes(page()));
}

Address HostMemory::reserve(std::int64_t bytes) {
  const std::int64_t size = (bytes + granule() - 1) / granule() * granule();
  // Nothing is counted before it is touched.
  void* const begin = mmap(nullptr, index(size), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) {
    throw DeviceError(
        fmt::format("{} of addresses cannot be reserved: {}", human_bytes(size), strerror(errno)));
  }
  // One huge page would back what nobody asked for.
  madvise(begin, index(size), MADV_NOHUGEPAGE);
  const auto address = reinterpret_cast<Address>(begin);
  ranges_[address] = {size, 0};
  return address;
}

void HostMemory::unreserve(Address begin) {
  munmap(pointer(begin), index(ranges_.at(begin).bytes));
  ranges_.erase(begin);
}

bool HostMemory::do_back(Address begin) {
  if (!has(granule())) return false;
  auto range = std::prev(ranges_.upper_bound(begin));
  range->second.touched = std::max(range->second.touched, begin + granule() - range->first);
  // Written, not read: what is only read is backed by the one page of zeros.
  for (std::int64_t at = 0; at < granule(); at += page())
    *const_cast<volatile std::byte*>(pointer(begin + at)) = std::byte{0xff};
  return true;
}

void HostMemory::do_give_back(Address begin) {
  madvise(pointer(begin), index(granule()), MADV_DONTNEED);
}

std::int64_t HostMemory::measured() const {
  std::int64_t pages = 0;
  std::vector<unsigned char> there;
  for (const auto& [begin, range] : ranges_) {
    there.resize(index((range.touched + page() - 1) / page()));
    if (there.empty() || mincore(pointer(begin), index(range.touched), there.data()) != 0) continue;
    pages +=
        std::count_if(there.begin(), there.end(), [](unsigned char c) { return (c & 1) != 0; });
  }
  return pages * page();
}

// ---- Heap ---------------------------------------------------------------------------------------

HeapMemory::HeapMemory(std::int64_t limit) : HostBytes(alignof(std::max_align_t), limit) {}

Address HeapMemory::do_allocate(std::int64_t bytes) {
  if (!has(bytes)) return 0;
  void* const begin = std::malloc(index(bytes));
  if (begin == nullptr) return 0;
  std::memset(begin, 0xff, index(bytes));  // or else it is only promised
  usable_ += static_cast<std::int64_t>(malloc_usable_size(begin));
  return reinterpret_cast<Address>(begin);
}

void HeapMemory::do_release(Address begin) {
  usable_ -= static_cast<std::int64_t>(malloc_usable_size(pointer(begin)));
  std::free(pointer(begin));
}

// ---- Both ---------------------------------------------------------------------------------------

bool HostBytes::has(std::int64_t bytes) {
  unchecked_ -= bytes;
  if (unchecked_ >= 0) return true;
  if (device_free() < kSpare + bytes) return false;
  unchecked_ = kSpare;
  return true;
}

std::int64_t HostBytes::device_free() const {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) return std::atoll(line.c_str() + 13) * 1024;
  }
  return std::int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

void HostBytes::write(Address to, std::span<const std::byte> bytes) {
  if (!bytes.empty()) std::memcpy(pointer(to), bytes.data(), bytes.size());
}
void HostBytes::read(Address from, std::span<std::byte> bytes) const {
  if (!bytes.empty()) std::memcpy(bytes.data(), pointer(from), bytes.size());
}
void HostBytes::copy(Address from, Address to, std::int64_t bytes) {
  std::memmove(pointer(to), pointer(from), index(bytes));
}

}  // namespace kvspan::gpu_replay
