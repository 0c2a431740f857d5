// SPDX-License-Identifier: Apache-2.0
// What is held on the device and on the host, and read, in every row.
#include "sim/ledger/lives.h"

#include <cstdint>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/ledger/metrics.h"
#include "tests/support/ledgers.h"

using namespace kvspan;
using namespace kvspan::test;

using Counts = std::vector<std::int64_t>;

TEST_CASE("a head's rows are the states before newborns, of entries and of bytes", "[lives]") {
  const Ledger ledger = drawn(4, 0,
                              {{{"000000",  //
                                 ".000..",  //
                                 "..0011",  // quantised
                                 "...022",  // leaves for the host
                                 "....00",  //
                                 ".....0"}}});
  Lives lives(ledger);
  lives.begin_layer(0);
  const HeadRows head = lives.head(0);
  const auto values = [](const auto& span) { return Counts(span.begin(), span.end()); };
  CHECK(values(head.entries) == Counts{0, 1, 2, 3, 2, 3});
  CHECK(values(head.bytes) == Counts{0, 10, 20, 30, 14, 24});
  CHECK(values(head.gone) == Counts{6, 4, 6, 4, 6, 6});
  for (RowIndex row = 0; row < 6; ++row) CHECK(lives.evicts_at(row) == (row == 4));
}

TEST_CASE("an entry that dies at the end of a pass is there in every row of it", "[metrics]") {
  const Ledger ledger = drawn(4, 2,
                              {{{"00..",  //
                                 ".000",  //
                                 "..00",  //
                                 "...0"}}});
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{1, 2, 2, 3});
  CHECK(metrics.peak_bytes == PeakBytes{30, 30, 0, 30, 0, 3});  // no decode row
}

TEST_CASE("offloaded entries leave the device footprint for one of their own", "[metrics]") {
  const Ledger ledger = drawn(4, 2,
                              {{{"002222",  // to the host and stays there
                                 ".0023.",  // comes back as a copy, then dies
                                 "..0000",  //
                                 "...000",  //
                                 "....00",  //
                                 ".....0"}}});
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{1, 2, 2, 2, 4, 4});
  CHECK(metrics.timeline.host_bytes == Counts{0, 0, 10, 20, 20, 10});
  CHECK(metrics.host_peak_bytes == 20);
  CHECK(metrics.host_footprint == 5.0 / 21.0);  // the copy is a device entry
  CHECK(metrics.footprint == 15.0 / 21.0);
  CHECK(metrics.bytes_read == 150);
}

TEST_CASE("a change of a dead entry counts nothing", "[metrics]") {
  Ledger ledger = drawn(2, 0,
                        {{{"00..",  //
                           ".000",  //
                           "..00",  //
                           "...0"}}});
  const Metrics before = compute_metrics(ledger, kWhole);
  ledger.changes[0] = {{2, 0, 0, 2}, {3, 0, 0, 1}};
  const Metrics after = compute_metrics(ledger, kWhole);
  CHECK(after.timeline.resident_bytes == before.timeline.resident_bytes);
  CHECK(after.timeline.host_bytes == Counts(4, 0));
}

TEST_CASE("a model's sliding window bounds what is read and not what is resident", "[metrics]") {
  Ledger ledger = drawn(4, 0,
                        {{{"000000",  //
                           ".000..",  //
                           "..00..",  //
                           "...000",  //
                           "....00",  //
                           ".....0"}},
                         {full_head(6)}});
  ledger.sliding_window = {2, 0};  // layer 0: row i reads tokens i-1 and i
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.resident_entries == Counts{2, 4, 6, 8, 8, 10});
  CHECK(metrics.timeline.active_entries == Counts{2, 4, 5, 6, 7, 8});
  CHECK(metrics.entries_read == 32);
  CHECK(metrics.bytes_read == 320);
  CHECK(metrics.footprint == 38.0 / 42.0);
}

TEST_CASE("a selector's choice is what is read", "[metrics]") {
  Ledger ledger = drawn(2, 0, {{full_head(4)}});
  ledger.selected = {1, 2, 1, 1};
  const Metrics metrics = compute_metrics(ledger, kWhole);
  CHECK(metrics.timeline.active_entries == Counts{1, 2, 1, 1});
  CHECK(metrics.entries_read == 5);
  CHECK(metrics.bytes_read == 50);
  CHECK(metrics.footprint == 1.0);
}
