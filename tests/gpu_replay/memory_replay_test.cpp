// SPDX-License-Identifier: Apache-2.0
// The pool's figures are the simulator's, byte by byte: for ledgers drawn at random, and for every
// policy of the registry.
#include <algorithm>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "gpu_replay/pool/host_memory.h"
#include "gpu_replay/replay/fill.h"
#include "gpu_replay/replay/sequence.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/ledgers.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;

namespace {

void check_figures(const Ledger& ledger, const std::string& layout, bool layerwise) {
  INFO(layout << (layerwise ? ", layerwise" : ""));
  HostMemory memory;
  MemoryReplaySettings settings;
  settings.layerwise = layerwise;
  const Metrics metrics = compute_metrics(ledger, {2, layerwise, layout});
  const MemoryReplay replay = replay_memory(ledger, layout, memory, settings);
  REQUIRE_FALSE(replay.shortage);
  CHECK(replay.peak == metrics.peak_bytes);
  CHECK(replay.wrong_bytes == 0);
  CHECK(replay.wrong_deaths == 0);
  CHECK(replay.most_backed.measured == replay.most_backed.backed);
  CHECK(memory.backed() == 0);
  std::int64_t differing = 0;
  for (RowIndex row = 0; row < ledger.plan.tokens; ++row) {
    if (layerwise && row < ledger.plan.prompt) continue;
    const Moment& now = replay.rows[index(row)];
    const bool ordered = now.kv.payload >= 0 && now.kv.copies >= 0 && now.kv.tail >= 0 &&
                         now.kv.dead >= 0 && now.backed >= now.total();
    if (!ordered || now.total() != metrics.timeline.resident_bytes[index(row)]) ++differing;
  }
  CHECK(differing == 0);
  if (!layerwise) CHECK(replay.byte_rows == metrics.byte_rows);
}

// Death rows as the pool's own lists have them, read after every pass.
std::vector<std::uint32_t> deaths_of_pool(const Ledger& ledger, const std::string& layout) {
  HostMemory memory;
  ArenaSet arenas(memory);
  const std::vector<LayerSteps> steps = steps_of(ledger);
  std::vector<std::uint32_t> deaths(ledger.death.size(),
                                    static_cast<std::uint32_t>(ledger.plan.tokens));
  Sequence sequence(ledger, steps, parse_layout(layout), false, arenas, {});
  while (!sequence.done()) {
    sequence.advance();
    for (int layer = 0; layer < ledger.layers; ++layer) {
      for (int head = 0; head < ledger.heads; ++head) {
        std::vector<char> held(index(sequence.row()), 0);
        for (const TokenIndex token : sequence.pool().held(layer, head)) held[index(token)] = 1;
        for (std::size_t token = 0; token < held.size(); ++token) {
          std::uint32_t& death = deaths[ledger.offset(layer, head) + token];
          if (held[token] == 0 && death == ledger.plan.tokens)
            death = static_cast<std::uint32_t>(sequence.row());
        }
      }
    }
  }
  return deaths;
}

// One layer, one head, entries of 256 bytes, so that a block of 16 is a page; all in one pass.
Ledger pages(RowIndex prompt, const std::vector<std::uint32_t>& death) {
  Ledger ledger;
  ledger.layers = ledger.model_layers = ledger.heads = ledger.query_heads = 1;
  ledger.plan = make_passes(static_cast<RowIndex>(death.size()), prompt, prompt, 0);
  ledger.representations = {{"entry", 256, 0}};
  ledger.death = death;
  return ledger;
}

}  // namespace

TEST_CASE("a pool's bytes are the layout's, for random ledgers", "[gpu_replay][random]") {
  const int seed = GENERATE(take(150, random(0, 1 << 30)));
  test::LedgerRandom random(static_cast<unsigned>(seed));
  Ledger ledger = test::random_ledger(random, 40);
  if (random.chance(60)) test::add_changes(random, ledger);
  std::vector<std::string> layouts = standard_layouts();
  for (const char* name :
       {"paged1_per_head", "paged3_per_head", "paged4_per_layer", "paged2_per_head_compact",
        "paged3_per_layer_compact", "openvino1", "openvino2", "openvino3"})
    layouts.emplace_back(name);
  INFO("seed " << seed);
  for (int i = 0; i < 3; ++i) {
    const std::string& layout =
        layouts[index(random.between(0, static_cast<std::int64_t>(layouts.size()) - 1))];
    check_figures(ledger, layout, random.chance(50));
  }
}

TEST_CASE("a pool that allocates block by block uses the same bytes", "[gpu_replay][random]") {
  const int seed = GENERATE(take(40, random(0, 1 << 30)));
  test::LedgerRandom random(static_cast<unsigned>(seed));
  Ledger ledger = test::random_ledger(random, 40);
  test::add_changes(random, ledger);
  const std::vector<std::string>& layouts = standard_layouts();
  const std::string& layout =
      layouts[index(random.between(0, static_cast<std::int64_t>(layouts.size()) - 1))];
  MemoryReplaySettings settings;
  settings.layerwise = random.chance(50);
  INFO("seed " << seed << ", " << layout);
  HeapMemory memory;
  const MemoryReplay replay = replay_memory(ledger, layout, memory, settings);
  REQUIRE_FALSE(replay.shortage);
  CHECK(replay.peak == compute_metrics(ledger, {2, settings.layerwise, layout}).peak_bytes);
  CHECK(replay.wrong_bytes == 0);
  CHECK(replay.wrong_deaths == 0);
  CHECK(replay.most_backed.backed >= replay.most_backed.total());
  CHECK(replay.most_backed.measured >= replay.most_backed.backed);
  CHECK(memory.backed() == 0);
  CHECK(memory.measured() == 0);
}

TEST_CASE("an entry may change inside a pass, a row after its birth", "[gpu_replay]") {
  // Told at row 2 of token 3, which is born in row 3: narrow from row 4 on, in a pass of six rows.
  Ledger ledger = pages(6, std::vector<std::uint32_t>(6, 6));
  ledger.representations.push_back({"narrow", 56, 0});
  ledger.changes = {{{2, 0, 3, 1}}};
  for (const char* layout : {"ideal", "padded", "query_head", "paged2_per_head_compact"}) {
    for (const bool layerwise : {false, true}) check_figures(ledger, layout, layerwise);
  }
  HostMemory memory;
  const MemoryReplay replay = replay_memory(ledger, "ideal", memory, {});
  CHECK(replay.rows[3].total() == 4 * 256);
  CHECK(replay.rows[4].total() == 4 * 256 + 56);
}

TEST_CASE("what comes back takes the place of what leaves in the same row", "[gpu_replay]") {
  // Entry 1 went to the host after row 3 and returns after row 4, when entry 2 goes there.
  Ledger ledger = pages(1, std::vector<std::uint32_t>(6, 6));
  ledger.representations.push_back({"host", 0, 256});
  ledger.changes = {{{4, 0, 1, 1}, {5, 0, 1, 0}, {5, 0, 2, 1}}};
  for (const char* layout : {"ideal", "padded", "openvino1", "paged2_per_head_compact"})
    check_figures(ledger, layout, false);
}

TEST_CASE("a pool's bytes are the layout's, for every policy", "[gpu_replay][conformance]") {
  const Trace trace = test::random_trace(72, 56, 11);
  EngineOptions options;
  options.fidelity = false;
  options.chunk = GENERATE(0, 16);
  std::vector<RecipeSpec> specs = all_policies();
  for (RecipeSpec& spec : specs) apply_budget(spec, "12");
  for (const RunResult& run : run_policies(trace, specs, options, {})) {
    INFO(run.spec << ", chunk " << options.chunk);
    for (const std::string& layout : standard_layouts()) {
      for (const bool layerwise : {false, true}) check_figures(run.ledger, layout, layerwise);
    }
    CHECK(deaths_of_pool(run.ledger, "paged16_per_head_compact") == run.ledger.death);
  }
}

TEST_CASE("memory that runs out is a result: where, what was asked, what was free",
          "[gpu_replay]") {
  HostMemory memory(HostMemory::page(), 3 * HostMemory::page());
  const Ledger ledger = pages(64, std::vector<std::uint32_t>(64, 64));
  const MemoryReplay replay = replay_memory(ledger, "paged16_per_head", memory, {});
  REQUIRE(replay.shortage);
  CHECK(replay.shortage->row == 48);
  CHECK(replay.shortage->layer == 0);
  CHECK(replay.shortage->asked == 4096);
  CHECK(replay.shortage->free == 0);
  CHECK(replay.peak.total == 3 * 4096);
  CHECK(replay.most_backed.measured == 3 * 4096);
  CHECK(replay.predicted.total == 4 * 4096);
  CHECK(memory.backed() == 0);
}

TEST_CASE("as many sequences fit as a device was filled with", "[gpu_replay]") {
  const auto fill = [](const Ledger& ledger, int pages_of_limit) {
    HostMemory memory(HostMemory::page(), pages_of_limit * HostMemory::page());
    const Fill found = fill_memory(ledger, "paged16_per_head_compact", memory, {});
    CHECK(found.sequences == found.predicted);
    CHECK(memory.backed() == 0);
    return found.sequences;
  };
  // Four pages each, and nothing leaves.
  const Ledger full = pages(60, std::vector<std::uint32_t>(64, 64));
  CHECK(fill(full, 3) == 0);
  CHECK(fill(full, 4) == 1);
  CHECK(fill(full, 11) == 2);
  // A prefill of four pages leaves 20 entries, and four rows more are two pages: 4, 6, 8, ...
  std::vector<std::uint32_t> death(68, 68);
  for (std::size_t t = 0; t < 44; ++t) death[t] = 64;
  CHECK(fill(pages(64, death), 7) == 2);
  CHECK(fill(pages(64, death), 8) == 3);
  CHECK(fill(pages(64, death), 13) == 5);
}

TEST_CASE("state that a policy keeps is backed beside its entries", "[gpu_replay]") {
  HostMemory memory;
  Ledger ledger = pages(64, std::vector<std::uint32_t>(64, 64));
  ledger.charge.entry = 64;  // a page of it: 64 entries
  ledger.charge.once = 1;    // begins another
  const MemoryReplay replay = replay_memory(ledger, "paged16_per_head", memory, {});
  CHECK(replay.peak == PeakBytes{4 * 4096 + 4097, 4 * 4096, 4097, 4 * 4096 + 4097, 0, 63});
  CHECK(replay.most_backed.backed == 6 * 4096);
}

TEST_CASE("a large granule is seen in what is backed, and nowhere else", "[gpu_replay]") {
  const std::int64_t granule = 16 * HostMemory::page();
  HostMemory memory(granule);
  const MemoryReplay replay =
      replay_memory(pages(64, std::vector<std::uint32_t>(64, 64)), "ideal", memory, {});
  CHECK(replay.peak.total == 64 * 256);
  CHECK(replay.most_backed.backed == granule);
  CHECK(replay.backed_byte_rows == 64 * granule);
  CHECK(replay.payload_byte_rows == 256 * 64 * 65 / 2);
}
