// SPDX-License-Identifier: Apache-2.0
// Memory of a device, in one of two ways. Mapped: address space is reserved once, and granules of
// it are backed and given back. Allocated: every block and run is an allocation of its own. No CUDA
// here: the host does so by pages and by its heap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "sim/base/error.h"

namespace kvspan::gpu_replay {

using Address = std::int64_t;  // of a byte of the device

// Memory was asked for that the device, or the limit set for it, does not have. A replay makes a
// result of it.
class OutOfMemory : public Error {
 public:
  OutOfMemory(std::int64_t asked, std::int64_t free);
  std::int64_t asked, free;  // bytes
};

class DeviceMemory {
 public:
  // At most `limit` bytes are backed at a time; 0: as many as the device has.
  DeviceMemory(std::int64_t granule, std::int64_t limit) : granule_(granule), limit_(limit) {}
  virtual ~DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  [[nodiscard]] virtual std::string name() const = 0;
  // Mapped, or else allocated.
  [[nodiscard]] virtual bool maps() const = 0;
  // The bytes that are backed together; of allocations, what their sizes are multiples of.
  [[nodiscard]] std::int64_t granule() const { return granule_; }
  [[nodiscard]] std::int64_t limit() const { return limit_; }
  [[nodiscard]] std::int64_t backed() const { return backed_; }
  // Bytes that can still be backed.
  [[nodiscard]] std::int64_t free() const;
  // What the device itself says is backed of what was reserved here.
  [[nodiscard]] virtual std::int64_t measured() const = 0;

  // ---- Mapped -----------------------------------------------------------------------------------

  // Address space for `bytes`, rounded up to granules, none of it backed. Errors: DeviceError.
  [[nodiscard]] virtual Address reserve(std::int64_t /*bytes*/) { return 0; }
  // REQUIRES: nothing of it is in use. Gives back what is backed, too.
  virtual void unreserve(Address /*begin*/) {}
  // One granule, which begins at `begin`. Fresh memory is not cleared.
  // Errors: OutOfMemory; nothing has changed then.
  void back(Address begin);
  void give_back(Address begin);

  // ---- Allocated --------------------------------------------------------------------------------

  // At least so many bytes. Errors: OutOfMemory; nothing has changed then.
  [[nodiscard]] Address allocate(std::int64_t bytes);
  // REQUIRES: as it was allocated.
  void release(Address begin, std::int64_t bytes);
  // `bytes`, as an allocation has them.
  [[nodiscard]] std::int64_t rounded(std::int64_t bytes) const {
    return (bytes + granule_ - 1) / granule_ * granule_;
  }

  // ---- Both -------------------------------------------------------------------------------------

  // REQUIRES: all of it is backed.
  virtual void write(Address to, std::span<const std::byte> bytes) = 0;
  virtual void read(Address from, std::span<std::byte> bytes) const = 0;
  virtual void copy(Address from, Address to, std::int64_t bytes) = 0;

 protected:
  // False: the device has no more.
  virtual bool do_back(Address /*begin*/) { return false; }
  virtual void do_give_back(Address /*begin*/) {}
  // 0: the device has no more. REQUIRES: rounded bytes.
  virtual Address do_allocate(std::int64_t /*bytes*/) { return 0; }
  virtual void do_release(Address /*begin*/) {}
  // Of the device, whoever uses it.
  [[nodiscard]] virtual std::int64_t device_free() const = 0;

 private:
  std::int64_t granule_, limit_;
  std::int64_t backed_ = 0;
};

}  // namespace kvspan::gpu_replay
