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
  for (const Address begin : allocated_) {
    if (begin != 0) memory_->release(begin, block_bytes_);
  }
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
  if (!memory_->maps()) return allocated_[index(block)];
  return pieces_[index(block / per_piece_)].begin + block % per_piece_ * block_bytes_;
}

BlockArena::Block BlockArena::allocate() {
  const Block block = free_.empty() ? fresh_ : free_.top();
  back(block);
  if (free_.empty())
    ++fresh_;
  else
    free_.pop();
  ++in_use_;
  return block;
}

void BlockArena::back(Block block) {
  if (!memory_->maps()) {
    if (allocated_.size() <= index(block)) allocated_.resize(index(block) + 1, 0);
    allocated_[index(block)] = memory_->allocate(block_bytes_);
    return;
  }
  if (index(block / per_piece_) == pieces_.size()) {
    const std::int64_t bytes = memory_->rounded(per_piece_ * block_bytes_);
    pieces_.push_back(
        {memory_->reserve(bytes), std::vector<std::int32_t>(index(bytes / memory_->granule()), 0)});
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
}

void BlockArena::free(Block block) {
  free_.push(block);
  --in_use_;
  if (!memory_->maps()) {
    memory_->release(std::exchange(allocated_[index(block)], 0), block_bytes_);
    return;
  }
  Piece& piece = pieces_[index(block / per_piece_)];
  const Granules of = granules_of(block);
  for (std::size_t g = of.first; g <= of.last; ++g) {
    assert(piece.users[g] > 0);
    if (--piece.users[g] == 0)
      memory_->give_back(piece.begin + static_cast<Address>(g) * memory_->granule());
  }
}

Region::Region(DeviceMemory& memory, std::int64_t most_bytes)
    : memory_(&memory),
      begin_(memory.maps() ? memory.reserve(std::max<std::int64_t>(1, most_bytes)) : 0) {}

Region::Region(Region&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      begin_(other.begin_),
      granules_(other.granules_),
      bytes_(other.bytes_) {}

Region::~Region() {
  if (memory_ == nullptr) return;
  if (!memory_->maps()) {
    if (bytes_ > 0) memory_->release(begin_, bytes_);
    return;
  }
  while (granules_ > 0) memory_->give_back(begin_ + --granules_ * memory_->granule());
  memory_->unreserve(begin_);
}

std::int64_t Region::resize(std::int64_t bytes) {
  if (!memory_->maps()) return allocate_anew((bytes + kStep - 1) / kStep * kStep);
  const std::int64_t wanted = memory_->rounded(bytes) / memory_->granule();
  const std::int64_t before = granules_;
  try {
    for (; granules_ < wanted; ++granules_) memory_->back(begin_ + granules_ * memory_->granule());
  } catch (...) {
    while (granules_ > before) memory_->give_back(begin_ + --granules_ * memory_->granule());
    throw;
  }
  while (granules_ > wanted) memory_->give_back(begin_ + --granules_ * memory_->granule());
  return 0;
}

std::int64_t Region::allocate_anew(std::int64_t bytes) {
  if (bytes == bytes_) return 0;
  const Address fresh = bytes == 0 ? 0 : memory_->allocate(bytes);
  const std::int64_t copied = std::min(bytes, bytes_);
  if (copied > 0) memory_->copy(begin_, fresh, copied);
  if (bytes_ > 0) memory_->release(begin_, bytes_);
  begin_ = fresh;
  bytes_ = bytes;
  return copied;
}

}  // namespace kvspan::gpu_replay
