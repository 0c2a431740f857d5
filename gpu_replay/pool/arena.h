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
//
// Where memory is allocated, a block in use is an allocation of its own.
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
  // Memory behind a block. Errors: OutOfMemory; nothing has changed then.
  void back(Block block);

  DeviceMemory* memory_;
  std::int64_t block_bytes_, per_piece_;
  std::vector<Piece> pieces_;       // of mapped memory
  std::vector<Address> allocated_;  // [blocks] of allocated memory; 0: not in use
  std::priority_queue<Block, std::vector<Block>, std::greater<>> free_;
  Block fresh_ = 0;  // blocks from here on were never in use
  std::int64_t in_use_ = 0;
};

// Bytes that lie in one run of addresses, as many as are needed. Where memory is allocated, a run
// that grows or shrinks by a step of kStep is allocated anew and copied.
class Region {
 public:
  Region(DeviceMemory& memory, std::int64_t most_bytes);
  ~Region();
  Region(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // Returns the bytes that were copied. REQUIRES: at most `most_bytes`. Errors: OutOfMemory;
  // nothing has changed then.
  std::int64_t resize(std::int64_t bytes);
  // Changes when bytes are copied.
  [[nodiscard]] Address begin() const { return begin_; }

  static constexpr std::int64_t kStep = std::int64_t{64} << 10;

 private:
  std::int64_t allocate_anew(std::int64_t bytes);

  DeviceMemory* memory_;
  Address begin_ = 0;
  std::int64_t granules_ = 0;  // backed
  std::int64_t bytes_ = 0;     // allocated
};

}  // namespace kvspan::gpu_replay
