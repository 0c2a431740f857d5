// SPDX-License-Identifier: Apache-2.0
// Blocks, granules and slots: what is backed when, by hand.
#include <array>
#include <vector>

#include <catch2/catch.hpp>

#include "gpu_replay/pool/host_memory.h"
#include "gpu_replay/pool/kv_pool.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;

namespace {

constexpr std::int64_t kPage = 4096;

// One layer of entries of `bytes`.
PoolShape shape(const std::string& layout, int heads, RowIndex tokens, std::int64_t bytes = 256) {
  return {1, heads, heads, tokens, {{"entry", bytes, 0}}, parse_layout(layout)};
}

std::vector<std::byte> filled(std::size_t size, int value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

}  // namespace

TEST_CASE("a granule is backed while one of its blocks is in use", "[gpu_replay]") {
  HostMemory memory(kPage);
  BlockArena arena(memory, kPage / 4);
  std::vector<BlockArena::Block> blocks;
  for (int i = 0; i < 6; ++i) blocks.push_back(arena.allocate());
  CHECK(memory.backed() == 2 * kPage);
  CHECK(memory.measured() == 2 * kPage);
  for (int i = 0; i < 3; ++i) arena.free(blocks[index(i)]);
  CHECK(memory.backed() == 2 * kPage);
  arena.free(blocks[3]);
  CHECK(memory.backed() == kPage);
  CHECK(memory.measured() == kPage);
  // The lowest free one comes first, so that the second granule can go.
  CHECK(arena.allocate() == blocks[0]);
  arena.free(blocks[4]);
  arena.free(blocks[5]);
  CHECK(memory.backed() == kPage);
  CHECK(arena.in_use() == 1);
}

TEST_CASE("a block may lie in several granules, and takes all or none", "[gpu_replay]") {
  HostMemory memory(kPage, 3 * kPage);
  BlockArena arena(memory, kPage + kPage / 2);
  const BlockArena::Block first = arena.allocate();  // granules 0 and 1
  CHECK(memory.backed() == 2 * kPage);
  const BlockArena::Block second = arena.allocate();  // 1 and 2
  CHECK(memory.backed() == 3 * kPage);
  CHECK(arena.address(second) == arena.address(first) + kPage + kPage / 2);
  try {
    (void)arena.allocate();  // 3 and 4
    FAIL("four pages of three");
  } catch (const OutOfMemory& shortage) {
    CHECK(shortage.asked == kPage);
    CHECK(shortage.free == 0);
  }
  arena.free(first);  // of granule 1 the second needs the other half
  CHECK(memory.backed() == 2 * kPage);
  CHECK(arena.allocate() == first);
  CHECK_THROWS_AS(arena.allocate(), OutOfMemory);
  CHECK(memory.backed() == 3 * kPage);
  CHECK(arena.in_use() == 2);
}

TEST_CASE("a block that fits in part is not backed in part", "[gpu_replay]") {
  HostMemory memory(kPage, 3 * kPage);
  BlockArena arena(memory, 2 * kPage);
  (void)arena.allocate();
  CHECK_THROWS_AS(arena.allocate(), OutOfMemory);  // a page of two
  CHECK(memory.backed() == 2 * kPage);
  CHECK(memory.measured() == 2 * kPage);
}

TEST_CASE("where memory is allocated, a block is an allocation of its own", "[gpu_replay]") {
  HeapMemory memory(3 * 112);
  BlockArena arena(memory, 100);  // 112 in steps of 16
  CHECK(memory.granule() == 16);
  const BlockArena::Block first = arena.allocate();
  (void)arena.allocate();
  (void)arena.allocate();
  CHECK(memory.backed() == 3 * 112);
  CHECK(memory.measured() >= 3 * 112);
  try {
    (void)arena.allocate();
    FAIL("four blocks of three");
  } catch (const OutOfMemory& shortage) {
    CHECK(shortage.asked == 112);
    CHECK(shortage.free == 0);
  }
  CHECK(arena.in_use() == 3);
  arena.free(first);
  CHECK(memory.backed() == 2 * 112);
  CHECK(arena.allocate() == first);
}

TEST_CASE("where memory is allocated, a run that grows is copied", "[gpu_replay]") {
  constexpr std::int64_t kStep = Region::kStep;
  HeapMemory memory(3 * kStep);
  Region region(memory, 100 * kStep);
  CHECK(region.resize(1) == 0);
  CHECK(memory.backed() == kStep);
  memory.write(region.begin(), filled(8, 7));
  CHECK(region.resize(kStep) == 0);  // it has room
  CHECK(region.resize(kStep + 1) == kStep);
  CHECK(memory.backed() == 2 * kStep);
  std::vector<std::byte> bytes(8);
  memory.read(region.begin(), bytes);
  CHECK(bytes == filled(8, 7));
  // Both would have to be there at a time.
  CHECK_THROWS_AS(region.resize(3 * kStep), OutOfMemory);
  memory.read(region.begin(), bytes);
  CHECK(bytes == filled(8, 7));
  CHECK(region.resize(3) == kStep);
  CHECK(region.resize(0) == 0);
  CHECK(memory.backed() == 0);
}

TEST_CASE("neither the first block of OpenVINO's cache leaves nor the last full one",
          "[gpu_replay]") {
  HostMemory memory;
  ArenaSet arenas(memory);
  KvPool pool(shape("openvino2", 1, 9, 8), arenas);
  for (TokenIndex token = 0; token < 8; ++token) pool.append(0, token);
  const Address first = *pool.find(0, 0, 0);
  // Block {0 1} is empty, but {2 3} leaves: its entries take the places of 0 and 1.
  pool.apply(0, std::vector<Step>{{0, 0}, {0, 1}}, true);
  CHECK(*pool.find(0, 0, 2) == first);
  CHECK(*pool.find(0, 0, 3) == first + 8);
  CHECK(pool.table_entries() == 3);
  CHECK(pool.moved() == 2 * 8);
  // All six to a place of their own.
  pool.apply_by_copy(0, {}, [&] { CHECK(pool.usage().used() == 2 * 6 * 8); });
  CHECK(pool.moved() == 8 * 8);
  CHECK(pool.usage().used() == 6 * 8);
}

TEST_CASE("what is backed has the granule that was asked for", "[gpu_replay]") {
  HostMemory memory(4 * kPage);
  Region region(memory, 100 * kPage);
  region.resize(1);
  CHECK(memory.backed() == 4 * kPage);
  CHECK(memory.measured() == 4 * kPage);
  region.resize(9 * kPage);
  CHECK(memory.backed() == 12 * kPage);
  region.resize(0);
  CHECK(memory.backed() == 0);
  CHECK(memory.measured() == 0);
  CHECK_THROWS_AS(HostMemory(kPage + 1), ConfigError);
}

TEST_CASE("survivors keep their bytes when a pool moves them together", "[gpu_replay]") {
  HostMemory memory;
  ArenaSet arenas(memory);
  const std::string layout =
      GENERATE(as<std::string>{}, "ideal", "padded", "paged2_per_head", "paged2_per_layer",
               "paged2_per_head_compact", "paged2_per_layer_compact", "openvino2", "masked");
  INFO(layout);
  KvPool pool(shape(layout, 2, 9, 8), arenas);
  for (TokenIndex token = 0; token < 9; ++token) {
    pool.append(0, token);
    for (int head = 0; head < 2; ++head)
      CHECK(pool.write(0, head, token, filled(8, 16 * head + token)));
  }
  // Head 0 keeps 1, 8; head 1 keeps 0, 5, 7.
  std::vector<Step> steps;
  for (const TokenIndex token : {0, 2, 3, 4, 5, 6, 7}) steps.push_back({.head = 0, .token = token});
  for (const TokenIndex token : {1, 2, 3, 4, 6, 8}) steps.push_back({.head = 1, .token = token});
  pool.apply(0, steps, true);
  CHECK(pool.held(0, 0) == std::vector<TokenIndex>{1, 8});
  CHECK(pool.held(0, 1) == std::vector<TokenIndex>{0, 5, 7});
  std::vector<std::byte> bytes(8);
  for (int head = 0; head < 2; ++head) {
    for (const TokenIndex token : pool.held(0, head)) {
      REQUIRE(pool.read(0, head, token, bytes));
      CHECK(bytes == filled(8, 16 * head + token));
    }
  }
  CHECK(pool.usage().payload == 5 * 8);
  CHECK(pool.entries() == 5);
}

TEST_CASE("usage says what the slots beyond the entries are", "[gpu_replay]") {
  HostMemory memory;
  ArenaSet arenas(memory);
  const auto usage = [&](const std::string& layout) {
    KvPool pool(shape(layout, 2, 6, 10), arenas);
    for (TokenIndex token = 0; token < 5; ++token) pool.append(0, token);
    // Head 0 keeps 4; head 1 keeps 0, 1 and 4.
    const std::vector<Step> steps = {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}};
    pool.apply(0, steps, true);
    return pool.usage();
  };
  // payload, copies, narrow, tail, dead
  CHECK(usage("ideal") == Usage{40, 0, 0, 0, 0});
  CHECK(usage("padded") == Usage{40, 0, 0, 0, 20});
  // Blocks {4 5} of both heads and {0 1} of head 1.
  CHECK(usage("paged2_per_head") == Usage{40, 0, 0, 20, 0});
  CHECK(usage("paged2_per_layer") == Usage{40, 0, 0, 20, 20});
  CHECK(usage("paged2_per_head_compact") == Usage{40, 0, 0, 20, 0});
  CHECK(usage("paged2_per_layer_compact") == Usage{40, 0, 0, 20, 20});
  // Three blocks at least: nothing leaves.
  CHECK(usage("openvino2") == Usage{40, 0, 0, 20, 60});
  CHECK(usage("masked") == Usage{40, 0, 0, 0, 60});
}

TEST_CASE("a copy for every query head lies beside the first", "[gpu_replay]") {
  HostMemory memory;
  ArenaSet arenas(memory);
  PoolShape of = shape("query_head", 2, 3, 8);
  of.query_heads = 6;
  KvPool pool(of, arenas);
  pool.append(0, 0);
  CHECK(pool.write(0, 1, 0, filled(8, 7)));
  std::vector<std::byte> bytes(8);
  for (int copy = 0; copy < 3; ++copy) {
    CHECK(pool.read(0, 1, 0, bytes, copy));
    CHECK(bytes == filled(8, 7));
  }
  CHECK(*pool.find(0, 1, 0, 2) == *pool.find(0, 1, 0, 0) + 16);
  CHECK(pool.usage() == Usage{16, 32, 0, 0, 0});
}

TEST_CASE("an entry that is held in fewer bytes leaves room in its slot", "[gpu_replay]") {
  HostMemory memory;
  ArenaSet arenas(memory);
  PoolShape of = shape("paged2_per_head_compact", 1, 4, 10);
  of.representations.push_back({"narrow", 4, 0});
  of.representations.push_back({"host", 0, 10});
  KvPool pool(of, arenas);
  for (TokenIndex token = 0; token < 3; ++token) pool.append(0, token);
  pool.apply(0, std::vector<Step>{{0, 0, 1}, {0, 1, 2}}, true);
  CHECK(pool.usage() == Usage{14, 0, 6, 0, 0});
  CHECK(pool.held(0, 0) == std::vector<TokenIndex>{0, 1, 2});
  CHECK(pool.entries() == 2);
  CHECK_FALSE(pool.find(0, 0, 1));
  // It comes back from the host.
  pool.apply(0, std::vector<Step>{{0, 1, 0}}, true);
  CHECK(pool.usage() == Usage{24, 0, 6, 10, 0});
  CHECK(pool.find(0, 0, 1));
}
