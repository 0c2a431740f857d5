// SPDX-License-Identifier: Apache-2.0
// Zeroed fp32 memory, anonymous or, where it may be larger than RAM, in an unlinked file that the
// kernel can write back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace kvspan::tracegen {

class Scratch {
 public:
  Scratch() = default;
  // `folder` empty: anonymous. Errors: Error naming the folder when the disk is too small.
  Scratch(std::int64_t elements, const std::filesystem::path& folder);
  ~Scratch();
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;

  [[nodiscard]] float* data() const { return data_; }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }
  [[nodiscard]] bool in_file() const { return in_file_; }

 private:
  float* data_ = nullptr;
  std::int64_t bytes_ = 0;
  bool in_file_ = false;
};

}  // namespace kvspan::tracegen
