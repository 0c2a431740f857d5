// SPDX-License-Identifier: Apache-2.0
// Ledgers for tests of what follows from them: drawn by hand, of the paper's heads, and random.
//   Ledger ledger = drawn(2, 0, {{{"00.",     // prompt 2, one pass; one layer, one head
//                                  ".00",     // token 1 stays
//                                  "..0"}}});
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"

namespace kvspan::test {

[[nodiscard]] inline std::size_t at(std::int64_t value) { return static_cast<std::size_t>(value); }

[[nodiscard]] inline Accounting accounting(const std::string& layout, bool layerwise = false) {
  return {2, layerwise, layout};
}
inline const Accounting kWhole = accounting("ideal");
inline const Accounting kLayerwise = accounting("ideal", true);

// ---- From pictures ------------------------------------------------------------------------------

// One line a token, one column a row: '.' not there, a digit is the representation it is held in:
// 0 an entry of 10 bytes, 1 quantised to 4, 2 on the host, 3 on the device with a copy on the host.
using Picture = std::vector<std::string>;

// pictures [layers][heads]
[[nodiscard]] Ledger drawn(RowIndex prompt, RowIndex chunk,
                           const std::vector<std::vector<Picture>>& pictures);
// Nothing is ever evicted.
[[nodiscard]] Picture full_head(std::size_t tokens);

// ---- The paper's heads --------------------------------------------------------------------------

// One layer without heads, entries of one byte.
[[nodiscard]] Ledger paper_ledger(RowIndex n, RowIndex m, RowIndex chunk);
void add_head(Ledger& ledger, const std::vector<std::uint32_t>& deaths);
// A streaming head: sinks and a recent window stay after every pass.
[[nodiscard]] std::vector<std::uint32_t> streaming_deaths(const std::vector<RowIndex>& ends,
                                                          RowIndex sinks, RowIndex window);
// Of each chunk of the prompt the newest (1-s) c + w stay, for good.
[[nodiscard]] std::vector<std::uint32_t> evicting_deaths(const std::vector<RowIndex>& ends,
                                                         RowIndex prompt, double s, RowIndex w);

// ---- Random -------------------------------------------------------------------------------------

class LedgerRandom {
 public:
  explicit LedgerRandom(unsigned seed) : engine_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool chance(int percent) { return between(1, 100) <= percent; }

 private:
  std::mt19937 engine_;
};

// Deaths at ends of passes, as an engine decides them.
[[nodiscard]] Ledger random_ledger(LedgerRandom& random, RowIndex most_tokens);
void add_windows(LedgerRandom& random, Ledger& ledger);
// Offloads, copies back and quantises at ends of passes, dead and unborn entries included.
void add_changes(LedgerRandom& random, Ledger& ledger);

}  // namespace kvspan::test
