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
    const auto memory = test::device().make_memory(0, 0);
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
