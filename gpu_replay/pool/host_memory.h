// SPDX-License-Identifier: Apache-2.0
// The host's memory as a device's, in both ways. Mapped: mmap reserves, pages are touched to be
// backed and given back by madvise, and mincore says how many really are. Allocated: by the heap.
#pragma once

#include <map>

#include "gpu_replay/pool/memory.h"

namespace kvspan::gpu_replay {

// What both have in common.
class HostBytes : public DeviceMemory {
 public:
  using DeviceMemory::DeviceMemory;
  void write(Address to, std::span<const std::byte> bytes) override;
  void read(Address from, std::span<std::byte> bytes) const override;
  void copy(Address from, Address to, std::int64_t bytes) override;

 protected:
  [[nodiscard]] std::int64_t device_free() const override;
  // Whether so many more bytes leave something to others.
  [[nodiscard]] bool has(std::int64_t bytes);

 private:
  std::int64_t unchecked_ = 0;  // bytes to take before the machine is asked again
};

class HostMemory final : public HostBytes {
 public:
  // granule: 0: a page of this machine; else a multiple of it. Errors: ConfigError.
  explicit HostMemory(std::int64_t granule = 0, std::int64_t limit = 0);
  ~HostMemory() override;

  [[nodiscard]] std::string name() const override;
  [[nodiscard]] bool maps() const override { return true; }
  [[nodiscard]] std::int64_t measured() const override;
  [[nodiscard]] Address reserve(std::int64_t bytes) override;
  void unreserve(Address begin) override;

  [[nodiscard]] static std::int64_t page();

 protected:
  bool do_back(Address begin) override;
  void do_give_back(Address begin) override;

 private:
  struct Range {
    std::int64_t bytes = 0;
    std::int64_t touched = 0;  // bytes from its begin that were ever backed
  };
  std::map<Address, Range> ranges_;  // by begin
};

class HeapMemory final : public HostBytes {
 public:
  explicit HeapMemory(std::int64_t limit = 0);
  [[nodiscard]] std::string name() const override { return "host, heap"; }
  [[nodiscard]] bool maps() const override { return false; }
  // What malloc gave, which may be more than it was asked for.
  [[nodiscard]] std::int64_t measured() const override { return usable_; }

 protected:
  Address do_allocate(std::int64_t bytes) override;
  void do_release(Address begin) override;

 private:
  std::int64_t usable_ = 0;
};

}  // namespace kvspan::gpu_replay
