// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>

#include "sim/replay/replay_view.h"
#include "tests/support/cases.h"

using namespace kvspan;

namespace {

// Each query head reads what it is given.
class Given final : public Selector {
 public:
  explicit Given(std::vector<std::vector<TokenIndex>> lists) : lists_(std::move(lists)) {}
  void select(const View& /*view*/, std::span<Reads> reads) override {
    for (std::size_t q = 0; q < lists_.size(); ++q) reads[q].attended = lists_[q];
  }

 private:
  std::vector<std::vector<TokenIndex>> lists_;
};

// Every row reads the even tokens.
class EvenTokens final : public Selector {
 public:
  bool by_row() const override { return true; }
  void mask(const View& /*view*/, int /*query_head*/, RowIndex row,
            std::span<float> mask) override {
    for (RowIndex t = 1; t <= row; t += 2) mask[static_cast<std::size_t>(t)] = 0;
  }
};

// One layer of 12 tokens, 4 query heads on 2 stored heads, after a first pass of 8.
struct Layer {
  Trace trace = test::random_trace(12, 8, 1, 1);
  PassPlan plan = make_passes(12, 8, 8, 0);
  Policy policy;
  FidelityPlan fidelity;
  DecisionBoard board{1};
  Ledger ledger = empty_ledger(plan);
  LayerScores scores{trace, 0};
  LayerState now{policy, plan, trace, {0, 1, 0, 1, 4, 2, 2, 4, 4}, fidelity, ledger, board};
  Layer() { now.residency.add(0, 8); }

  static Ledger empty_ledger(const PassPlan& plan) {
    Ledger ledger;
    ledger.plan = plan;
    ledger.layers = 1;
    ledger.heads = 2;
    ledger.selected.assign(12, 0);
    ledger.read_rows = {5};
    ledger.reads.assign(2 * ledger.reads_bytes(), 0);
    return ledger;
  }
  void begin(Selector* selector) { now.reads.begin(selector, ReplayView(now, nullptr), scores); }
};

}  // namespace

TEST_CASE("without a selector rows read everything that is resident", "[reads]") {
  Layer layer;
  layer.begin(nullptr);
  CHECK_FALSE(layer.now.reads.selected());
  CHECK(layer.now.reads.everything(3));
  CHECK(layer.now.reads.mask(3) == layer.now.residency.mask(1).data());
  CHECK(layer.now.reads.loaded()[5] == 2 * 6);
  REQUIRE(layer.now.residency.evict({{.head = 1, .token = 0}}) == nullptr);
  CHECK(layer.now.reads.everything(1));
  CHECK_FALSE(layer.now.reads.everything(2));  // of the stored head that lost an entry
}

TEST_CASE("a stored head loads what its query heads choose together", "[reads]") {
  Layer layer;
  Given given({{0, 2}, {2, 3}, {7}, {7}});
  layer.begin(&given);
  const PassReads& reads = layer.now.reads;
  CHECK(*reads.chosen(1) == std::vector<TokenIndex>{2, 3});
  CHECK(std::vector<float>(reads.mask(1), reads.mask(1) + 5) == std::vector<float>{0, 0, 1, 1, 0});
  CHECK(reads.loaded()[5] == 3 + 0);  // 0, 2, 3; and 7 is not there yet
  CHECK(reads.loaded()[7] == 3 + 1);
  CHECK(layer.ledger.reads == std::vector<std::uint8_t>{0b1101, 0, 0, 0});
}

TEST_CASE("who selects what is not resident is stopped", "[reads]") {
  Layer layer;
  Given given({{0}, {9}, {}, {}});
  CHECK_THROWS_WITH(layer.begin(&given),
                    Catch::Contains("query head 1 selects token 9, which is not resident"));
}

TEST_CASE("rows with masks of their own are counted row by row", "[reads]") {
  Layer layer;
  EvenTokens even;
  layer.begin(&even);
  CHECK(layer.now.reads.by_row());
  CHECK_FALSE(layer.now.reads.everything(0));
  std::vector<float> storage;
  const float* mask = mask_of(layer.now, 0, 4, storage);
  CHECK(std::vector<float>(mask, mask + 6) == std::vector<float>{1, 0, 1, 0, 1, 0});
  layer.now.reads.count_rows(0, 4, {{1, 0, 1, 0, 1}, {1, 0, 1, 0, 1, 0}});
  CHECK(layer.now.reads.loaded()[4] == 3);
  CHECK(layer.now.reads.loaded()[5] == 3);
  CHECK(layer.ledger.reads == std::vector<std::uint8_t>{0b10101, 0, 0, 0});
}
