// SPDX-License-Identifier: Apache-2.0
// Lifetimes as a graph and in blocks: by hand, on Boost.Graph, by all placements, and against what
// the ledger says of layouts.
#include "sim/optimum/slots.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/optimum/lifetime_graph.h"
#include "sim/run/run.h"
#include "tests/sim/optimum/random_values.h"
#include "tests/support/cases.h"

using namespace kvspan;
using namespace kvspan::optimum;
using Catch::Matchers::Contains;

namespace {

// One birth a row, as entries have.
std::vector<Life> random_lives(Random& random, int count, int longest) {
  std::vector<Life> lives;
  for (RowIndex birth = 0; birth < count; ++birth)
    lives.push_back({birth, birth + 1 + draw(random, longest)});
  return lives;
}

// Rows of blocks of the best of all placements: each life into a block that is there, or a new one.
class AllPlacements {
 public:
  AllPlacements(std::vector<Life> lives, std::int64_t size)
      : lives_(std::move(lives)), size_(size) {
    next(0);
  }
  [[nodiscard]] std::int64_t best() const { return best_; }

 private:
  void next(std::size_t i) {
    if (i == lives_.size()) {
      std::int64_t rows = 0;
      for (const std::vector<Life>& block : blocks_) {
        std::set<RowIndex> held;
        for (const Life& life : block) {
          for (RowIndex row = life.birth; row < life.death; ++row) held.insert(row);
        }
        rows += std::ssize(held);
      }
      best_ = std::min(best_, rows);
      return;
    }
    for (std::size_t b = 0; b <= blocks_.size(); ++b) {
      if (b == blocks_.size()) blocks_.emplace_back();
      const auto alive = std::count_if(blocks_[b].begin(), blocks_[b].end(), [&](const Life& life) {
        return life.death > lives_[i].birth;
      });
      if (alive < size_) {
        blocks_[b].push_back(lives_[i]);
        next(i + 1);
        blocks_[b].pop_back();
      }
      if (blocks_[b].empty()) {
        blocks_.pop_back();
        break;
      }
    }
  }
  std::vector<Life> lives_;
  std::int64_t size_;
  std::vector<std::vector<Life>> blocks_;
  std::int64_t best_ = std::numeric_limits<std::int64_t>::max();
};

bool disjoint(const std::vector<Life>& lives, const Slots& slots) {
  for (std::size_t a = 0; a < lives.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      if (slots[a] == slots[b] && lives[a].birth < lives[b].death &&
          lives[b].birth < lives[a].death)
        return false;
    }
  }
  return true;
}

std::int64_t colours(const Slots& slots) {
  return std::ssize(std::set<std::int32_t>(slots.begin(), slots.end()));
}

}  // namespace

TEST_CASE("lives lie in blocks as pen and paper say", "[slots]") {
  // rows      0123456789      alive 1 2 3 3 1 1 1 2 2 2
  // entry 0   ====            first fit: slots 0, 1, 2, then 0 again, which 0 and 2 have left
  //       1    =========      block {0, 1} is held in rows 0 to 9, block {2} in 2 and 3
  //       2     ==
  //       3          ===
  const std::vector<Life> lives{{0, 4}, {1, 10}, {2, 4}, {7, 10}};
  CHECK(most_at_once(lives) == 3);
  CHECK(first_fit(lives) == Slots{0, 1, 2, 0});
  CHECK(use_of(lives, first_fit(lives), 2).rows == 10 + 2);
  CHECK(use_of(lives, first_fit(lives), 2).most == 2);
  CHECK(use_of(lives, in_order(lives), 2).rows == 10 + 2 + 3);
  CHECK(least_use(lives, 2).rows == 1 + 1 + 2 + 2 + 1 + 1 + 1 + 1 + 1 + 1);
  CHECK(use_of(lives, best_found(lives, 2), 2).rows == 12);
  // Eight entries; the even ones die at row 8, the odd ones at 16: together with their like they
  // take blocks of two for 15 + 11 and 8 + 4 rows, one after the other for 16 + 14 + 12 + 10.
  std::vector<Life> halves;
  for (RowIndex birth = 0; birth < 8; ++birth)
    halves.push_back({birth, birth % 2 == 0 ? RowIndex{8} : RowIndex{16}});
  CHECK(use_of(halves, in_order(halves), 2).rows == 16 + 14 + 12 + 10);
  CHECK(use_of(halves, first_fit(halves), 2).rows == 16 + 14 + 12 + 10);
  CHECK(use_of(halves, best_found(halves, 2), 2).rows == 15 + 11 + 8 + 4);
  CHECK(AllPlacements(halves, 2).best() == 15 + 11 + 8 + 4);
  CHECK(least_use(halves, 2).rows == 1 + 1 + 2 + 2 + 3 + 3 + 4 + 4 + 8 * 2);
  CHECK(most_at_once({}) == 0);
  CHECK(use_of({}, {}, 4).rows == 0);
}

TEST_CASE("the largest clique is the peak, and first fit colours the graph", "[slots]") {
  Random random(4);
  for (int round = 0; round < 40; ++round) {
    const std::vector<Life> lives =
        random_lives(random, 1 + draw(random, 30), 1 + draw(random, 25));
    const Slots slots = first_fit(lives);
    CHECK(slots == coloured(lives));
    CHECK(largest_clique(lives) == most_at_once(lives));
    CHECK(colours(slots) == most_at_once(lives));
    CHECK(disjoint(lives, slots));
  }
  CHECK_THROWS_WITH(coloured(random_lives(random, kGraphLives + 1, 2)),
                    Contains("at most 1024, and there are 1025"));
}

TEST_CASE("the best placement lies between the bound and what is found", "[slots]") {
  Random random(9);
  std::int64_t best = 0, found = 0, online = 0;
  for (int round = 0; round < 20; ++round) {
    const std::vector<Life> lives = random_lives(random, 7, 2 + draw(random, 9));
    for (const std::int64_t size : {2, 3}) {
      const std::int64_t all = AllPlacements(lives, size).best();
      const Slots placed = best_found(lives, size);
      const std::int64_t rows = use_of(lives, placed, size).rows;
      CHECK(disjoint(lives, placed));
      CHECK(least_use(lives, size).rows <= all);
      CHECK(all <= rows);
      CHECK(rows <= use_of(lives, first_fit(lives), size).rows);
      best += all;
      found += rows;
      online += use_of(lives, first_fit(lives), size).rows;
    }
  }
  INFO("best " << best << ", found " << found << ", first fit " << online);
  CHECK(100 * found < 102 * best);
  CHECK(100 * online > 103 * best);
}

TEST_CASE("graph and blocks say what the ledger says", "[slots]") {
  const Trace trace = test::random_trace(60, 35, 3);
  RunRequest request;
  request.specs = expand_policies({"h2o", "snapkv", "chunked(tova)"}, {"30%"});
  request.engine.chunk = 8;
  const RunReport report = run(trace, request);
  for (const RunResult& run : report.runs) {
    INFO(run.spec);
    std::vector<Life> all;
    for (int layer = 0; layer < 2; ++layer) {
      for (int head = 0; head < 2; ++head) {
        const std::vector<Life> lives = lives_of(run.ledger.deaths(layer, head));
        const auto l = static_cast<std::size_t>(layer), h = static_cast<std::size_t>(head);
        CHECK(most_at_once(lives) == std::lround(60 * run.metrics.head_peak_kv[l][h]));
        CHECK(largest_clique(lives) == most_at_once(lives));
        all.insert(all.end(), lives.begin(), lives.end());
      }
    }
    CHECK(most_at_once(all) == std::lround(4 * 60 * run.metrics.peak_kv));
  }
  // One head: bytes over time of a paged cache, and of one that closes its gaps.
  const Trace single = test::random_heads(60, 35, 1, 1, 1);
  const RunReport one = run(single, request);
  for (const RunResult& run : one.runs) {
    INFO(run.spec);
    const std::vector<Life> lives = lives_of(run.ledger.deaths(0, 0));
    const std::int64_t entry = run.ledger.representations[0].device_bytes;
    const auto bytes = [&](const char* layout) {
      return compute_metrics(run.ledger, {2, false, layout});
    };
    const std::int64_t state = bytes("ideal").byte_rows - run.metrics.entry_rows * entry;
    const BlockUse paged = use_of(lives, in_order(lives), 4);
    CHECK(bytes("paged4_per_head").byte_rows == paged.rows * 4 * entry + state);
    CHECK(bytes("paged4_per_head_compact").byte_rows ==
          least_use(lives, 4).rows * 4 * entry + state);
  }
}
