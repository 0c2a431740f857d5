// SPDX-License-Identifier: Apache-2.0
// The host's memory as a device's: mmap reserves, pages are touched to be backed and given back by
// madvise, and mincore says how many really are.
#pragma once

#include <map>

#include "gpu_replay/pool/memory.h"

namespace kvspan::gpu_replay {

class HostMemory final : public DeviceMemory {
 public:
  // granule: 0: a page of this machine; else a multiple of it. Errors: ConfigError.
  explicit HostMemory(std::int64_t granule = 0, std::int64_t limit = 0);
  ~HostMemory() override;

  [[nodiscard]] std::string name() const override;
  [[nodiscard]] std::int64_t measured() const override;
  [[nodiscard]] Address reserve(std::int64_t bytes) override;
  void unreserve(Address begin) override;
  void write(Address to, std::span<const std::byte> bytes) override;
  void read(Address from, std::span<std::byte> bytes) const override;
  void copy(Address from, Address to, std::int64_t bytes) override;

  [[nodiscard]] static std::int64_t page();

 protected:
  bool do_back(Address begin) override;
  void do_give_back(Address begin) override;
  [[nodiscard]] std::int64_t device_free() const override;

 private:
  struct Range {
    std::int64_t bytes = 0;
    std::int64_t touched = 0;  // bytes from its begin that were ever backed
  };
  std::map<Address, Range> ranges_;  // by begin
  std::int64_t unchecked_ = 0;       // bytes to back before the machine is asked again
};

}  // namespace kvspan::gpu_replay
