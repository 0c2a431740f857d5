// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/arena.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{256} << 20;  // of addresses, which cost nothing

}  // namespace

BlockArena::BlockArena(DeviceMemory& memory, std::int64_t block_bytes)
    : memory_(&memory),
      block_bytes_(block_bytes),
      per_piece_(std::max<std::int64_t>(1, kPieceBytes / block_bytes)) {
  assert(block_bytes > 0);
}

BlockArena::~BlockArena() {
  for (const Piece& piece : pieces_) {
    for (std::size_t g = 0; g < piece.users.size(); ++g) {
      if (piece.users[g] > 0)
        memory_->give_back(piece.begin + static_cast<Address>(g) * memory_->granule());
    }
    memory_->unreserve(piece.begin);
  }
}

BlockArena::Granules BlockArena::granules_of(Block block) const {
  const std::int64_t from = block % per_piece_ * block_bytes_;
  return {index(from / memory_->granule()), index((from + block_bytes_ - 1) / memory_->granule())};
}

Address BlockArena::address(Block block) const {
  return pieces_[index(block / per_piece_)].begin + block % per_piece_ * block_bytes_;
}

BlockArena::Block BlockArena::allocate() {
  const Block block = free_.empty() ? fresh_ : free_.top();
  if (index(block / per_piece_) == pieces_.size()) {
    const std::int64_t bytes = per_piece_ * block_bytes_;
    const std::int64_t granules = (bytes + memory_->granule() - 1) / memory_->granule();
    pieces_.push_back({memory_->reserve(bytes), std::vector<std::int32_t>(index(granules), 0)});
  }
  Piece& piece = pieces_[index(block / per_piece_)];
  const Granules of = granules_of(block);
  const auto begin_of = [&](std::size_t g) {
    return piece.begin + static_cast<Address>(g) * memory_->granule();
  };
  for (std::size_t g = of.first; g <= of.last; ++g) {
    if (piece.users[g]++ > 0) continue;
    try {
      memory_->back(begin_of(g));
    } catch (...) {
      --piece.users[g];
      while (g-- > of.first) {
        if (--piece.users[g] == 0) memory_->give_back(begin_of(g));
      }
      throw;
    }
  }
  if (free_.empty())
    ++fresh_;
  else
    free_.pop();
  ++in_use_;
  return block;
}

void BlockArena::free(Block block) {
  Piece& piece = pieces_[index(block / per_piece_)];
  const Granules of = granules_of(block);
  for (std::size_t g = of.first; g <= of.last; ++g) {
    assert(piece.users[g] > 0);
    if (--piece.users[g] == 0)
      memory_->give_back(piece.begin + static_cast<Address>(g) * memory_->granule());
  }
  free_.push(block);
  --in_use_;
}

Region::Region(DeviceMemory& memory, std::int64_t most_bytes)
    : memory_(&memory), begin_(memory.reserve(std::max<std::int64_t>(1, most_bytes))) {}

Region::Region(Region&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      begin_(other.begin_),
      granules_(other.granules_) {}

Region::~Region() {
  if (memory_ == nullptr) return;
  while (granules_ > 0) memory_->give_back(begin_ + --granules_ * memory_->granule());
  memory_->unreserve(begin_);
}

void Region::resize(std::int64_t bytes) {
  const std::int64_t wanted = (bytes + memory_->granule() - 1) / memory_->granule();
  const std::int64_t before = granules_;
  try {
    for (; granules_ < wanted; ++granules_) memory_->back(begin_ + granules_ * memory_->granule());
  } catch (...) {
    while (granules_ > before) memory_->give_back(begin_ + --granules_ * memory_->granule());
    throw;
  }
  while (granules_ > wanted) memory_->give_back(begin_ + --granules_ * memory_->granule());
}

}  // namespace kvspan::gpu_replay
