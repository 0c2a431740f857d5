// SPDX-License-Identifier: Apache-2.0
// Floats that many sequences have in common until one of them writes: what a fork does not touch is
// there once, and the kernel copies the pages that it does.
#pragma once

#include <cstdint>
#include <memory>

namespace kvspan::tracegen {

class ForkedMemory {
 public:
  // Zeroed. Errors: std::bad_alloc.
  explicit ForkedMemory(std::int64_t floats);
  ~ForkedMemory();
  ForkedMemory(ForkedMemory&& other) noexcept;
  ForkedMemory& operator=(ForkedMemory&&) = delete;

  // What stands here now, to be written apart. From then on nobody may write to this one.
  // REQUIRES: this is no fork itself.
  [[nodiscard]] ForkedMemory fork() const;
  [[nodiscard]] float* data() const { return data_; }

 private:
  struct File;
  ForkedMemory(std::shared_ptr<const File> file, bool shared);
  std::shared_ptr<const File> file_;
  float* data_ = nullptr;
};

}  // namespace kvspan::tracegen
