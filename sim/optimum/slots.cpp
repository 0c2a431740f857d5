// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/slots.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <queue>
#include <utility>

namespace kvspan::optimum {
namespace {

// Rows at which the number of lives changes, with by how much.
std::map<RowIndex, std::int64_t> changes_of(std::span<const Life> lives) {
  std::map<RowIndex, std::int64_t> changes;
  for (const Life& life : lives) {
    ++changes[life.birth];
    --changes[life.death];
  }
  return changes;
}

// Puts each life, births ascending, into the open block that it extends least. A block that would
// be extended by more than `patience` times a slot's share of a new one's life is left to others.
class Greedy {
 public:
  Greedy(std::int64_t block_size, double patience)
      : size_(static_cast<std::size_t>(block_size)), patience_(patience) {}

  std::int32_t place(const Life& life) {
    std::size_t block = nearest(life);
    if (block == blocks_.size()) block = closed(life.birth);
    if (block == blocks_.size()) blocks_.push_back({0, std::vector<RowIndex>(size_, 0)});
    Block& here = blocks_[block];
    const auto slot = std::find_if(here.ends.begin(), here.ends.end(),
                                   [&](RowIndex end) { return end <= life.birth; });
    *slot = life.death;
    here.until = std::max(here.until, life.death);
    return static_cast<std::int32_t>(block * size_ +
                                     static_cast<std::size_t>(slot - here.ends.begin()));
  }

 private:
  struct Block {
    RowIndex until = 0;          // when the last of it dies
    std::vector<RowIndex> ends;  // [size] of its slots
  };

  // Of equal ones whose end is nearest; blocks_.size(): none.
  [[nodiscard]] std::size_t nearest(const Life& life) const {
    const double share =
        patience_ * static_cast<double>(life.death - life.birth) / static_cast<double>(size_);
    std::size_t best = blocks_.size();
    auto least = std::pair(std::numeric_limits<RowIndex>::max(), RowIndex{0});
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const Block& block = blocks_[b];
      if (block.until <= life.birth) continue;
      const RowIndex extends = std::max<RowIndex>(0, life.death - block.until);
      const auto cost = std::pair(extends, std::abs(life.death - block.until));
      if (cost >= least || static_cast<double>(extends) > share) continue;
      if (std::all_of(block.ends.begin(), block.ends.end(),
                      [&](RowIndex end) { return end > life.birth; }))
        continue;
      least = cost;
      best = b;
    }
    return best;
  }
  [[nodiscard]] std::size_t closed(RowIndex row) const {
    const auto at = std::find_if(blocks_.begin(), blocks_.end(),
                                 [&](const Block& block) { return block.until <= row; });
    return static_cast<std::size_t>(at - blocks_.begin());
  }

  std::size_t size_;
  double patience_;
  std::vector<Block> blocks_;
};

// The longest first where births are the same.
Slots greedily(std::span<const Life> lives, std::int64_t block_size, double patience) {
  std::vector<std::size_t> order(lives.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(lives[a].birth, -lives[a].death) < std::pair(lives[b].birth, -lives[b].death);
  });
  Greedy greedy(block_size, patience);
  Slots slots(lives.size());
  for (const std::size_t i : order) slots[i] = greedy.place(lives[i]);
  return slots;
}

// Time runs back: who dies together is born together.
std::vector<Life> mirrored(std::span<const Life> lives) {
  RowIndex last = 0;
  for (const Life& life : lives) last = std::max(last, life.death);
  std::vector<Life> out;
  for (const Life& life : lives) out.push_back({last - life.death, last - life.birth});
  return out;
}

}  // namespace

std::vector<Life> lives_of(std::span<const std::uint32_t> deaths) {
  std::vector<Life> lives;
  for (std::size_t t = 0; t < deaths.size(); ++t)
    lives.push_back({static_cast<RowIndex>(t), static_cast<RowIndex>(deaths[t])});
  return lives;
}

std::int64_t most_at_once(std::span<const Life> lives) {
  std::int64_t now = 0, most = 0;
  for (const auto& [row, change] : changes_of(lives)) most = std::max(most, now += change);
  return most;
}

Slots in_order(std::span<const Life> lives) {
  Slots slots(lives.size());
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

Slots first_fit(std::span<const Life> lives) {
  using Ending = std::pair<RowIndex, std::int32_t>;  // death, slot
  std::priority_queue<Ending, std::vector<Ending>, std::greater<>> taken;
  std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> free;
  Slots slots;
  for (const Life& life : lives) {
    for (; !taken.empty() && taken.top().first <= life.birth; taken.pop())
      free.push(taken.top().second);
    if (free.empty()) free.push(static_cast<std::int32_t>(taken.size()));  // all others are taken
    slots.push_back(free.top());
    free.pop();
    taken.emplace(life.death, slots.back());
  }
  return slots;
}

Slots best_found(std::span<const Life> lives, std::int64_t block_size) {
  constexpr double kAny = std::numeric_limits<double>::infinity();
  const std::vector<Life> back = mirrored(lives);
  Slots best = first_fit(lives);
  std::int64_t least = use_of(lives, best, block_size).rows;
  for (const double patience : {kAny, 1.0, 4.0}) {
    for (const std::span<const Life> direction : {lives, std::span<const Life>(back)}) {
      Slots slots = greedily(direction, block_size, patience);
      const std::int64_t rows = use_of(lives, slots, block_size).rows;
      if (rows >= least) continue;
      least = rows;
      best = std::move(slots);
    }
  }
  return best;
}

BlockUse use_of(std::span<const Life> lives, const Slots& slots, std::int64_t block_size) {
  std::vector<std::size_t> order(lives.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto block_of = [&](std::size_t i) { return slots[i] / block_size; };
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(block_of(a), lives[a].birth) < std::pair(block_of(b), lives[b].birth);
  });
  // When blocks are held: lives of a block that meet are one.
  std::vector<Life> held;
  std::int64_t block = -1;
  for (const std::size_t i : order) {
    if (block_of(i) == block && lives[i].birth <= held.back().death)
      held.back().death = std::max(held.back().death, lives[i].death);
    else
      held.push_back(lives[i]);
    block = block_of(i);
  }
  BlockUse use{most_at_once(held), 0};
  for (const Life& one : held) use.rows += one.death - one.birth;
  return use;
}

BlockUse least_use(std::span<const Life> lives, std::int64_t block_size) {
  BlockUse use;
  std::int64_t now = 0;
  RowIndex since = 0;
  for (const auto& [row, change] : changes_of(lives)) {
    const std::int64_t blocks = (now + block_size - 1) / block_size;
    use.most = std::max(use.most, blocks);
    use.rows += blocks * (row - since);
    now += change;
    since = row;
  }
  return use;
}

}  // namespace kvspan::optimum
