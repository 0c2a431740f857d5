// SPDX-License-Identifier: Apache-2.0
// Memory over rows as a chart of characters, and the pieces of charts that the table and the SVG
// share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/base/text.h"
#include "sim/run/result.h"

namespace kvspan {

// Resident bytes over rows of at most six runs, in at most `height` lines (legend included) of at
// most `width` characters, every line ended by '\n'. A column shows its largest value; runs that
// cannot be told apart share a mark. More than six (fewer where the legend has no room): `full` and
// others, evenly spread over memory held. Less than 40 x 8 is drawn as 40 x 8. A report without
// runs or rows: "".
[[nodiscard]] std::string memory_chart(const RunReport& report, int width, int height, bool utf8);

// ---- Order and names ----------------------------------------------------------------------------

// Indices of the runs as every report lists them: `full` first, then as given, bounds last.
[[nodiscard]] std::vector<std::size_t> display_order(const RunReport& report);
// The label of a run, in one line.
[[nodiscard]] std::string label_of(const RunResult& run);
// Decode rows, or all rows where no decode row was measured; null without fidelity.
[[nodiscard]] const PhaseFidelity* quality_of(const RunResult& run);

// ---- Axes ---------------------------------------------------------------------------------------

// Rows on columns (characters or pixels). Decode gets at least a quarter of the width, because what
// a policy that evicts at the prompt's end holds is seen nowhere else; stretch() says how much
// wider than prefill its rows are.
struct RowAxis {
  std::int64_t tokens = 0, prompt = 0;
  int prefill_columns = 0, decode_columns = 0;
  // The rows [first, second) of a column, at least one.
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> rows(int column) const;
  // Where the middle of a row lies, in columns from the left.
  [[nodiscard]] double position(double row) const;
  [[nodiscard]] double stretch() const;
};
[[nodiscard]] RowAxis make_row_axis(std::int64_t tokens, std::int64_t prompt, int columns);

struct Tick {
  double value = 0;
  std::string label;
};
// Multiples of 1, 2 or 5 times a power of ten in [low, high], at most about `most`.
[[nodiscard]] std::vector<Tick> ticks(double low, double high, int most);

}  // namespace kvspan
