// SPDX-License-Identifier: Apache-2.0
// The pool in the memory of a GPU, and attention there: in the emulation, or on a GPU.
#include <catch2/catch.hpp>

#include "gpu_replay/cuda/driver.h"
#include "gpu_replay/cuda/module.h"
#include "gpu_replay/replay/memory_replay.h"
#include "sim/base/error.h"
#include "tests/support/ledgers.h"
#include "tests/support/pool_case.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;
using test::device;
using test::PoolCase;
using test::PoolShapeCase;

namespace {

constexpr double kClose = 1e-5;

}  // namespace

TEST_CASE("attention on the device equals double precision", "[cuda][replay]") {
  const int group = GENERATE(1, 2, 4, 5, 8, 16);
  PoolShapeCase shape{.heads = 2, .group = group, .tokens = 70};
  const auto [dim, layout, element] =
      GENERATE(table<int, const char*, Element>({{64, "paged1_per_head", Element::f16},
                                                 {128, "paged16_per_layer", Element::fp8},
                                                 {256, "paged64_per_head_compact", Element::f32},
                                                 {65, "openvino16", Element::f16}}));
  shape.k_dim = dim;
  shape.v_dim = dim == 65 ? 33 : dim;
  shape.layout = layout;
  shape.element = element;
  shape.softcap = group == 4 ? 3 : 0;
  shape.sinks = group == 2;
  INFO("group " << group << ", " << dim << ", " << layout);
  const PoolCase input(shape, static_cast<unsigned>(group * 1000 + dim));
  CHECK(input.worst(input.on_device()) < kClose);
}

TEST_CASE("the device reads entries in few bits, and without some channels", "[cuda][replay]") {
  const int group = GENERATE(1, 3, 16);
  PoolShapeCase shape{.heads = 2, .group = group, .tokens = 170};
  // The share of a table in bytes: 8, 13, 2, 1; with 13 and 1 a scale lies in two entries.
  const auto [dim, layout, element, bits, codes] =
      GENERATE(table<int, const char*, Element, int, int>(
          {{64, "padded", Element::f16, 2, 32},
           {65, "paged16_per_head_compact", Element::bf16, 4, 20},
           {128, "ideal", Element::fp8, 8, 256},
           {256, "openvino16", Element::f32, 4, 64},
           {8, "padded", Element::f32, 1, 32}}));
  shape.k_dim = dim;
  shape.v_dim = dim == 65 ? 34 : dim;
  shape.layout = layout;
  shape.element = element;
  shape.bits = bits;
  shape.group_of_codes = codes;
  shape.left = dim * 3 / 5;
  INFO("group " << group << ", " << dim << ", " << layout);
  const PoolCase input(shape, static_cast<unsigned>(group * 1000 + dim));
  CHECK(input.worst(input.on_device()) < kClose);
}

TEST_CASE("the device leaves out the first entries where it is told to", "[cuda][replay]") {
  const int bits = GENERATE(0, 2);
  // Of a group that begins before them the scales are needed.
  PoolShapeCase shape{.heads = 2, .group = 2, .tokens = 160};
  shape.bits = bits;
  shape.group_of_codes = 16;
  shape.skip = 21;
  const PoolCase input(shape, 9);
  CHECK(input.worst(input.on_device()) < kClose);
}

TEST_CASE("a head without entries, or with one, is attended", "[cuda][replay]") {
  const int left = GENERATE(0, 1);
  const bool sinks = GENERATE(false, true);
  const PoolCase input({.heads = 2, .group = 3, .tokens = 20, .sinks = sinks}, 5, left);
  CHECK(input.worst(input.on_device()) < kClose);
}

TEST_CASE("entries of one head are cut into many parts", "[cuda][replay]") {
  const int tokens = GENERATE(63, 64, 65, 400);
  const PoolCase input({.tokens = tokens, .layout = "padded"}, static_cast<unsigned>(tokens));
  CHECK(input.worst(input.on_device()) < kClose);
}

TEST_CASE("logits may rise by more than exp can hold", "[cuda][replay]") {
  // Normal with a deviation of 64: two of 70 differ by more than 88.
  const PoolCase input({.heads = 2, .group = 4, .tokens = 70, .scale = 8}, 17);
  CHECK(input.worst(input.on_device()) < 5e-4);
}

TEST_CASE("the device refuses attention of shapes that it has no kernel for", "[cuda][replay]") {
  DecodeResult out;
  DecodeRow row{.query_heads = 17, .heads = 1, .k_dim = 8, .v_dim = 8};
  CHECK_THROWS_WITH(device().attend(row, out), Catch::Contains("found 17 query heads"));
  row.query_heads = 1;
  row.v_dim = 257;
  CHECK_THROWS_AS(device().attend(row, out), DeviceError);
}

TEST_CASE("slots lie beyond 2^31 bytes of their block", "[cuda][replay]") {
  const auto memory = device().make_memory(0, 0);
  constexpr std::int64_t kSlot = 20'000'000;
  constexpr std::int64_t kSlotBytes = 256;
  const Address begin = memory->reserve((kSlot + 1) * kSlotBytes);
  const Address granule = begin + kSlot * kSlotBytes / memory->granule() * memory->granule();
  memory->back(granule);
  if ((kSlot + 1) * kSlotBytes > granule - begin + memory->granule())
    memory->back(granule + memory->granule());
  std::vector<float> x(128, 0.5F);
  std::vector<std::byte> coded(256);
  encode(x, Element::f16, 1, coded);
  memory->write(begin + kSlot * kSlotBytes, coded);
  const std::vector<HeadTable> tables = {
      {std::int64_t{1} << 30, kSlotBytes, {begin}, {static_cast<std::int32_t>(kSlot)}, {0}}};
  const std::vector<float> q(64, 1), ones(1, 1);
  DecodeResult out;
  device().attend({1, 1, 64, 64, Element::f16, 1, 0, q, tables, ones, ones, {}}, out);
  CHECK(out.output == std::vector<float>(64, 0.5F));
  CHECK(out.lse[0] == Approx(32));
  memory->give_back(granule);
  if ((kSlot + 1) * kSlotBytes > granule - begin + memory->granule())
    memory->give_back(granule + memory->granule());
}

TEST_CASE("a pool on the device uses what the layout says", "[cuda][replay]") {
  const int seed = GENERATE(take(3, random(0, 1 << 30)));
  const bool mapped = GENERATE(true, false);
  test::LedgerRandom random(static_cast<unsigned>(seed));
  Ledger ledger = test::random_ledger(random, 24);
  test::add_changes(random, ledger);
  for (const char* layout :
       {"padded", "paged3_per_head", "paged2_per_layer_compact", "openvino2"}) {
    for (const bool layerwise : {false, true}) {
      INFO("seed " << seed << ", " << layout << (layerwise ? ", layerwise" : "")
                   << (mapped ? "" : ", from a pool"));
      const auto memory = mapped ? device().make_memory(0, 0) : device().make_pool(0);
      MemoryReplaySettings settings;
      settings.layerwise = layerwise;
      const MemoryReplay replay = replay_memory(ledger, layout, *memory, settings);
      CHECK(replay.peak == compute_metrics(ledger, {2, layerwise, layout}).peak_bytes);
      CHECK(replay.wrong_bytes == 0);
      CHECK(replay.wrong_deaths == 0);
      CHECK(memory->backed() == 0);
    }
  }
  CHECK_THROWS_AS(device().make_memory(mapping_driver().granule() + 1, 0), ConfigError);
}
