// SPDX-License-Identifier: Apache-2.0
// What only the emulation can do to the pool on a GPU: the order of threads, and a small device.
#include <cuda_runtime.h>

#include <catch2/catch.hpp>

#include "gpu_replay/cuda/driver.h"
#include "gpu_replay/replay/memory_replay.h"
#include "tests/support/pool_case.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;
using test::PoolCase;

TEST_CASE("attention's bits do not depend on the order of threads", "[cuda][replay]") {
  const PoolCase input({.heads = 2, .group = 5, .tokens = 150}, 3);
  const DecodeResult first = input.on_device();
  for (const std::uint64_t seed : {1U, 2U, 7U}) {
    cuda_on_cpu::set_schedule(seed);
    const DecodeResult again = input.on_device();
    CHECK(again.output == first.output);
    CHECK(again.lse == first.lse);
  }
  cuda_on_cpu::set_schedule(0);
}

TEST_CASE("a device that has no more says so, and takes back all that it gave", "[cuda][replay]") {
  // Entries of a granule each: a row takes two of them.
  const bool mapped = GENERATE(true, false);
  const std::int64_t granule = mapping_driver().granule();
  Ledger ledger;
  ledger.layers = ledger.model_layers = 1;
  ledger.heads = ledger.query_heads = 2;
  ledger.plan = make_passes(8, 4, 4, 0);
  ledger.representations = {{"entry", granule, 0}};
  ledger.death.assign(16, 8);
  std::size_t before = 0, after = 0, total = 0;
  REQUIRE(cudaMemGetInfo(&before, &total) == cudaSuccess);
  cuda_on_cpu::set_device_memory(total - before + static_cast<std::size_t>(7 * granule));
  {
    const auto memory = mapped ? test::device().make_memory(0, 0) : test::device().make_pool(0);
    const MemoryReplay replay = replay_memory(ledger, "ideal", *memory, {});
    REQUIRE(replay.shortage);
    CHECK(replay.shortage->row == 3);
    CHECK(replay.shortage->asked == granule);
    CHECK(replay.shortage->free == 0);
    CHECK(replay.most_backed.measured == 7 * granule);
  }
  cuda_on_cpu::set_device_memory(total);
  REQUIRE(cudaMemGetInfo(&after, &total) == cudaSuccess);
  CHECK(after == before);
}

TEST_CASE("what a pool on the device holds is what it was asked for, and its pieces' rest",
          "[cuda][replay]") {
  const auto memory = test::device().make_pool(100'000);
  CHECK_FALSE(memory->maps());
  const Address first = memory->allocate(1000);
  CHECK(memory->backed() == 1024);
  CHECK(memory->measured() == 64 << 10);  // as the emulation takes them
  CHECK_THROWS_AS(memory->allocate(100'000), OutOfMemory);
  const Address second = memory->allocate(70'000);
  CHECK(memory->backed() == 1024 + 70'144);
  CHECK(memory->measured() == 128 << 10);
  const std::vector<std::byte> seven(1000, std::byte{7});
  memory->write(first, seven);
  memory->copy(first, second + 69'000, 1000);
  std::vector<std::byte> found(1000);
  memory->read(second + 69'000, found);
  CHECK(found == seven);
  memory->release(first, 1000);
  memory->release(second, 70'000);
  CHECK(memory->backed() == 0);
}
