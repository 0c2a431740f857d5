// SPDX-License-Identifier: Apache-2.0
// Blocks of one size, and runs of bytes that grow and shrink at their end, in granules of a device.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "gpu_replay/pool/memory.h"

namespace kvspan::gpu_replay {

// Blocks from a free list, the lowest first, so that what is in use stays together. A granule is
// backed while a block of it is in use:
//
//   blocks    |a|b|c|d|e|f|g|h|        a granule of four; only b is in use of the first, and none
//   granules  |  0    |  1    |        of the second, which is given back
class BlockArena {
 public:
  using Block = std::int32_t;
  BlockArena(DeviceMemory& memory, std::int64_t block_bytes);
  ~BlockArena();
  BlockArena(const BlockArena&) = delete;
  BlockArena& operator=(const BlockArena&) = delete;

  // Errors: OutOfMemory, DeviceError; nothing has changed then.
  [[nodiscard]] Block allocate();
  void free(Block block);
  [[nodiscard]] Address address(Block block) const;
  [[nodiscard]] std::int64_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] std::int64_t in_use() const { return in_use_; }  // blocks

 private:
  // Address space is reserved in pieces, each of whole granules and of `per_piece_` blocks.
  struct Piece {
    Address begin = 0;
    std::vector<std::int32_t> users;  // blocks in use of each granule
  };
  struct Granules {
    std::size_t first = 0, last = 0;
  };
  [[nodiscard]] Granules granules_of(Block block) const;

  DeviceMemory* memory_;
  std::int64_t block_bytes_, per_piece_;
  std::vector<Piece> pieces_;
  std::priority_queue<Block, std::vector<Block>, std::greater<>> free_;
  Block fresh_ = 0;  // blocks from here on were never in use
  std::int64_t in_use_ = 0;
};

// Bytes that lie in one run of addresses, as many as are needed.
class Region {
 public:
  Region(DeviceMemory& memory, std::int64_t most_bytes);
  ~Region();
  Region(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // REQUIRES: at most `most_bytes`. Errors: OutOfMemory; nothing has changed then.
  void resize(std::int64_t bytes);
  [[nodiscard]] Address begin() const { return begin_; }

 private:
  DeviceMemory* memory_;
  Address begin_ = 0;
  std::int64_t granules_ = 0;  // backed
};

}  // namespace kvspan::gpu_replay
