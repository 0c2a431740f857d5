// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/memory.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/text.h"

namespace kvspan::gpu_replay {

OutOfMemory::OutOfMemory(std::int64_t asked_bytes, std::int64_t free_bytes)
    : Error(fmt::format("out of memory: {} asked for, {} free", human_bytes(asked_bytes),
                        human_bytes(free_bytes)),
            5),
      asked(asked_bytes),
      free(free_bytes) {}

std::int64_t DeviceMemory::free() const {
  return limit_ > 0 ? std::max<std::int64_t>(0, limit_ - backed_) : device_free();
}

void DeviceMemory::back(Address begin) {
  const bool allowed = limit_ == 0 || backed_ + granule_ <= limit_;
  if (!allowed || !do_back(begin)) throw OutOfMemory(granule_, free());
  backed_ += granule_;
}

void DeviceMemory::give_back(Address begin) {
  do_give_back(begin);
  backed_ -= granule_;
}

Address DeviceMemory::allocate(std::int64_t bytes) {
  const std::int64_t size = rounded(bytes);
  const bool allowed = limit_ == 0 || backed_ + size <= limit_;
  const Address begin = allowed ? do_allocate(size) : 0;
  if (begin == 0) throw OutOfMemory(size, free());
  backed_ += size;
  return begin;
}

void DeviceMemory::release(Address begin, std::int64_t bytes) {
  do_release(begin);
  backed_ -= rounded(bytes);
}

}  // namespace kvspan::gpu_replay
